// migfilereader says what mig-parted's own parser makes of configuration files: one JSON line for each file that its
// arguments name, in their order, with what was read or with the error.
package main

import (
	"encoding/json"
	"os"

	"github.com/NVIDIA/mig-parted/cmd/nvidia-mig-parted/assert"
)

type answer struct {
	Read  any    `json:"read"`
	Error string `json:"error"`
}

func main() {
	lines := json.NewEncoder(os.Stdout)
	for _, name := range os.Args[1:] {
		found := answer{}
		spec, err := assert.ParseConfigFile(&assert.Flags{ConfigFile: name})
		if err != nil {
			found.Error = err.Error()
		} else {
			found.Read = spec.MigConfigs
		}
		if err := lines.Encode(found); err != nil {
			panic(err)
		}
	}
}
