// kstatus says how Flux, and whatever else uses kstatus, judges the object that stands on its standard input in JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	object := &unstructured.Unstructured{}
	err := json.NewDecoder(os.Stdin).Decode(object)
	if err == nil {
		var result *status.Result
		if result, err = status.Compute(object); err == nil {
			fmt.Printf("%s\t%s\n", result.Status, result.Message)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "kstatus:", err)
	os.Exit(1)
}
