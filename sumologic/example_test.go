package sumologic_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/sumologic"
)

func Example() {
	// The variables of the process are read if the argument is nil.
	cfg, err := sumologic.ConfigFromEnv(lookup(map[string]string{
		"SERVER_TYPE": "mds",
		"SERVER_ID":   "node-1",
		"LOG_MODE":    "none", // or sumologic, with SUMO_LOGIC_ENDPOINT and SUMO_LOGIC_COLLECTOR_CODE
		"FILTER_FILE": "testdata/npm/filter.json",
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	cfg.Console = indented{os.Stdout} // by default, standard output with one line for each entry
	sink, err := sumologic.New(cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = sink.Close() }()

	log := sink.Logger(zap.WithClock(fixedClock{})) // a fixed time, as an example needs it
	log.Info("user created",
		zap.String("correlationId", "5a1c@2/2026-11-25T20:51:08.971Z"),
		zap.String("name", "ann"),
		zap.String("password", "hidden by FILTER_FILE"))
	// Output:
	// {
	//  "correlationId": "5a1c",
	//  "level": "info",
	//  "message": "user created",
	//  "metadata": {
	//   "name": "ann",
	//   "password": "-------"
	//  },
	//  "requestedAt": "2026-11-25T20:51:08.971Z",
	//  "step": 2,
	//  "timestamp": "2026-11-25T20:51:08.990Z",
	//  "serverType": "mds",
	//  "serverId": "node-1@clients"
	// }
}

// indented writes each line of JSON as several lines.
type indented struct{ w io.Writer }

func (i indented) Write(line []byte) (int, error) {
	var buf bytes.Buffer
	if err := json.Indent(&buf, line, "", " "); err != nil {
		return 0, err
	}
	_, err := i.w.Write(buf.Bytes())
	return len(line), err
}

func (indented) Sync() error { return nil }

// ExampleConfigFromEnv shows the error of a configuration with several problems.
func ExampleConfigFromEnv() {
	_, err := sumologic.ConfigFromEnv(lookup(map[string]string{"LOG_MODE": "awsS3, sumologic", "EXIT_DELAY": "2s"}))
	fmt.Println(err)
	// Output:
	// sumologic: configuration: EXIT_DELAY "2s" is not a number of milliseconds from 0 to 3600000
	// LOG_MODE awsS3 is not supported: this library sends to sumologic only
	// SUMO_LOGIC_ENDPOINT is missing
	// SUMO_LOGIC_COLLECTOR_CODE is missing
}

// ExampleSink_Core adds a sink to a logger that has a console of its own.
func ExampleSink_Core() {
	sink, err := sumologic.New(sumologic.Config{
		Endpoint:     os.Getenv("SUMO_LOGIC_ENDPOINT"),
		Code:         sumologic.Secret(os.Getenv("SUMO_LOGIC_COLLECTOR_CODE")),
		ConsoleLevel: zap.WarnLevel, // reports of the sink only, and warnings
		ExitDelay:    time.Second,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = sink.Close() }()
	log := zap.NewExample(zap.WrapCore(sink.Tee))
	log.Info("to both")
	// Output:
	// {"level":"info","msg":"to both"}
}
