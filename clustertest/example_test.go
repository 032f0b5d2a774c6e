package clustertest_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"

	"github.com/mimiktech/cluster/clustertest"
)

func ExampleNetwork() {
	var n clustertest.Network
	n.Handle("mds-1:8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s", r.Host)
	}))
	n.Observe(func(x clustertest.Exchange) {
		fmt.Println(x.From, "→", x.To, x.Method, x.Path, x.Status)
	})

	client := n.Client("mds-2:8080")
	get := func() {
		resp, err := client.Get("http://mds-1:8080/things") //nolint:noctx // nothing here blocks
		if err != nil {
			fmt.Println("refused:", errors.Is(err, syscall.ECONNREFUSED))
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		fmt.Println(string(body))
	}
	get()
	n.Fault("mds-2:8080", "mds-1:8080", clustertest.FirstN(1, clustertest.Refuse))
	get()
	get()
	// Output:
	// mds-2:8080 → mds-1:8080 GET /things 200
	// hello from mds-1:8080
	// mds-2:8080 → mds-1:8080 GET /things 0
	// refused: true
	// mds-2:8080 → mds-1:8080 GET /things 200
	// hello from mds-1:8080
}
