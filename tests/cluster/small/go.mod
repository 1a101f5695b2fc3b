module carpool-cluster/small

go 1.26.0
