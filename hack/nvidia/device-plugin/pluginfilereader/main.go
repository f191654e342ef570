// pluginfilereader says what the device plugin's own parser makes of configuration files: one JSON line for each file
// that its arguments name, in their order, with what was read or with the error.
package main

import (
	"encoding/json"
	"os"

	spec "github.com/NVIDIA/k8s-device-plugin/api/config/v1"
	"github.com/urfave/cli/v2"
)

type answer struct {
	Read  *spec.Config `json:"read"`
	Error string       `json:"error"`
}

func main() {
	lines := json.NewEncoder(os.Stdout)
	for _, name := range os.Args[1:] {
		found := answer{}
		app := &cli.App{
			Flags: []cli.Flag{&cli.StringFlag{Name: "config-file"}},
			Action: func(c *cli.Context) (err error) {
				found.Read, err = spec.NewConfig(c, nil)
				return err
			},
		}
		if err := app.Run([]string{"reader", "--config-file", name}); err != nil {
			found.Error = err.Error()
		}
		if err := lines.Encode(found); err != nil {
			panic(err)
		}
	}
}
