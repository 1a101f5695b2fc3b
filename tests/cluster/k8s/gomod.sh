#!/bin/bash
# Writes go.mod and go.sum for one Kubernetes version: k8s/gomod.sh v1.37.2
# The published k8s.io/kubernetes points its staging modules at folders, so each gets a replace.
set -euo pipefail
cd "$(dirname "$0")"
version=$1 staging=v0.${1#v1.}
mod=$(cd / && go mod download -json "k8s.io/kubernetes@$version" | jq -r .GoMod)
etcd=$(awk '$1 == "go.etcd.io/etcd/server/v3" {print $2}' "$mod")
{
  echo "module carpool-cluster/k8s"
  echo
  grep '^go ' "$mod"
  echo
  grep '^godebug ' "$mod" || true
  echo
  echo "require ("
  echo "	go.etcd.io/etcd/server/v3 $etcd"
  echo "	k8s.io/kubernetes $version"
  echo ")"
  echo
  echo "replace ("
  awk -v v="$staging" '/=> \.\/staging\// {print "\t" $1 " => " $1 " " v}' "$mod"
  echo ")"
} > go.mod
rm -f go.sum
go mod tidy
