// Command clusterctl shows and checks a cluster from outside, as a guest. clusterctl --help
// describes its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills the program
	a := &app{
		lookupEnv: os.LookupEnv,
		in:        os.Stdin, out: os.Stdout, errOut: os.Stderr,
		canAsk: term.IsTerminal(int(os.Stdin.Fd())), showProgress: term.IsTerminal(int(os.Stderr.Fd())),
	}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// The exit codes of all commands.
const (
	exitOK      = 0
	exitProblem = 1 // a problem of the cluster, or a request that failed
	exitUsage   = 2 // invalid arguments or settings; no request was sent
)

// errProblem ends a command with exitProblem. The output has already shown the problem.
var errProblem = errors.New("a problem has been reported")

// A usageError is the error of an argument or a setting.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// An app is one run of the program.
type app struct {
	lookupEnv    func(string) (string, bool)
	in           io.Reader
	out, errOut  io.Writer
	canAsk       bool // in is a terminal
	showProgress bool // errOut is a terminal

	settings settings
	started  bool // the arguments are valid
	secrets  secrets
}

// run executes a command line, and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	out := &output{Writer: a.out}
	a.out = out
	root := a.command()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	err := root.ExecuteContext(ctx)
	if err == nil && out.err != nil {
		fmt.Fprintf(a.errOut, "clusterctl: writing the output: %v\n", out.err)
		return exitProblem
	}
	_, usage := errors.AsType[*usageError](err)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errProblem):
		return exitProblem
	case usage || !a.started:
		fmt.Fprintf(a.errOut, "clusterctl: %s\nclusterctl --help describes the commands and settings.\n", a.cleanLines(err.Error()))
		return exitUsage
	}
	fmt.Fprintf(a.errOut, "clusterctl: %s\n", a.cleanLines(err.Error()))
	return exitProblem
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "clusterctl",
		Short: "Show and check a cluster",
		Long: `clusterctl shows and checks a cluster of mimik services from outside. It reads the list of servers
from the registry (mIT), or from the view of one server with --server. It does not register. Only
"evict" changes the list, and only "ask" can change data of the servers.

The settings are the environment variables of a node. A flag takes precedence over its variable. In
the environment of a node, no flag is needed. The secret has no flag, because all users of the
machine can see a command line:

  SERVER_TYPE                 --type               the type of service, such as mds
  MIT_URL                     --registry           the base URL of the registry
  MIT_AUDIENCE                --registry-audience  the audience of its tokens
  {TYPE}_AUDIENCE             --peer-audience      the audience of tokens for servers
  OAUTH_ISSUER                --issuer             the URL of the token service (mST)
  OAUTH_TOKEN_URL             --token-url          the URL that issues tokens, if it is another one
  OAUTH_CLIENT_ID             --client-id          the credentials of a node
  OAUTH_CLIENT_SECRET                              the secret, or:
  OAUTH_CLIENT_SECRET_FILE    --client-secret-file a file with the secret
  CLUSTER_PEER_NETWORKS       --peer-networks      networks of the servers, such as 10.0.0.0/8
  REQUEST_TIMEOUT (in ms)     --timeout            the timeout of each request, such as 3s

If there is no registry, or its list cannot be read, pass the base URL of any server with --server,
such as http://10.0.0.7:8080/mds/v1. The server may be a node of the npm module.

Exit codes: 0 for success; 1 if the cluster has a problem or a request has failed; 2 if an argument
or a setting is invalid. With 2, no request was sent.`,
		Example: `  clusterctl check
  clusterctl list --output json
  clusterctl ask /things --server http://10.0.0.7:8080/mds/v1`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.started = true
			return a.settings.validate()
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	a.settings.addFlags(root)
	root.AddCommand(a.listCommand(), a.watchCommand(), a.askCommand(), a.checkCommand(), a.evictCommand(), a.tokenCommand())
	return root
}
