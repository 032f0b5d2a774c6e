package browser

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

//go:embed accessibility.js
var accessibility string

// A tab is a page in the browser.
type tab struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // that of chromedp, which is the tab
}

// open starts a browser. Chromium must be installed if INTEROP is "require".
func open(t *testing.T) *tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("INTEROP") == "require" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-background-networking", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil { // starts the browser, which would end with a timeout here
		t.Fatal(err)
	}
	messages := chromedp.Console(ctx)
	t.Cleanup(func() {
		cancel()
		for m, err := range messages {
			if err != nil {
				break
			}
			t.Errorf("the console has a message: %s %s", m.Type, m.Text)
		}
	})
	return b
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location + document.body.innerText"))
		b.t.Fatalf("%v, on the page %s", err, text)
	}
}

// says checks that the page shows texts.
func (b *tab) says(texts ...string) {
	b.t.Helper()
	got, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, text := range texts {
		if !strings.Contains(got, text) {
			b.t.Errorf("the page does not show %q:\n%s", text, got)
		}
	}
}

// click clicks an element that leads to another page, and waits until that page shows a text.
func (b *tab) click(selector, text string) {
	b.t.Helper()
	got := ""
	if _, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](fmt.Sprintf("document.querySelector(%q).click(), true", selector))); err != nil {
		b.t.Fatal(err)
	}
	for range 200 {
		// While the page is replaced, there is none to read.
		got, _ = chromedp.Run(b.ctx, chromedp.Evaluate[string]("location + document.body.innerText"))
		if strings.Contains(got, text) {
			return
		}
		time.Sleep(50 * time.Millisecond) // the browser is another process
	}
	b.t.Fatalf("after a click on %s, the page does not show %q: %s", selector, text, got)
}

// layouts checks the page in all layouts, and makes a screenshot of each.
func (b *tab) layouts(name string) {
	b.t.Helper()
	for _, layout := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1200, 900}, {"dark", "dark", 1200, 900}, {"narrow", "light", 375, 800}, {"narrow-dark", "dark", 375, 800}} {
		media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: layout.scheme}}}
		if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, media); err != nil {
			b.t.Fatal(err)
		}
		b.do(chromedp.EmulateViewport(layout.width, layout.height))
		problems, err := chromedp.Run(b.ctx, chromedp.Evaluate[[]string](accessibility))
		if err != nil {
			b.t.Fatal(err)
		}
		for _, p := range problems {
			b.t.Errorf("%s, %s: %s", name, layout.name, p)
		}
		png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
		if err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), name+"-"+layout.name+".png"), png, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{}); err != nil {
		b.t.Fatal(err)
	}
}

// screenshot writes what the window shows, for the README.
func (b *tab) screenshot(name string, width, height int64) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height))
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), name), png, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// The pages of a cluster in which a node has crashed, one hangs, one has another audience, and the
// registry fails for a while.
func TestPages(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"alpha", "bravo", "charlie", "delta"} {
		w.start(id, "")
	}
	w.start("echo", "https://other.test")
	w.start("foxtrot", "")
	w.register("alpha") // confirms the entries that were announced
	w.call()
	b := open(t)
	t.Run("crash", func(t *testing.T) {
		b.t = t
		w.nodes["charlie"].kill()
		w.call()
		b.do(chromedp.Navigate(w.nodes["alpha"].url + "?refresh=off"))
		b.says("mds · alpha", "evicted by this node, because it could not be reached", "echo: rejects the token of this node (wrong audience)")
	})
	t.Run("hang", func(t *testing.T) {
		b.t = t
		w.nodes["delta"].hangs.Store(true)
		w.call()
		w.register("delta") // it still renews, and announces itself
		w.call()
		b.do(chromedp.Reload())
		b.says("delta: is running, but this node gets no response from it", "timeout")
	})
	t.Run("two-way check", func(t *testing.T) {
		b.t = t
		b.click("button", "views were compared")
		b.says("Peers whose view could not be read", "This page does not load again by itself")
		b.layouts("node")
		b.do(chromedp.Evaluate[chromedp.Void]("scrollTo(0, 0)"))
		b.screenshot("status-node.png", 1000, 940)
	})
	t.Run("registry outage", func(t *testing.T) {
		b.t = t
		w.down.Store(true)
		w.register("foxtrot")
		b.do(chromedp.Navigate(w.nodes["foxtrot"].url))
		b.says("degraded", "This node could not renew its lease", "the registry cannot be reached")
		b.layouts("outage")
		w.down.Store(false)
		w.register("foxtrot")
		// The page loads itself again, without a script.
		deadline, cancel := context.WithTimeout(b.ctx, 20*time.Second)
		defer cancel()
		if err := chromedp.Do(deadline, chromedp.WaitVisible(".badge.good")); err != nil {
			t.Error(err)
		}
		b.says("registered")
	})
	t.Run("registry", func(t *testing.T) {
		b.t = t
		b.do(chromedp.Navigate(w.registry.URL + "/status?refresh=off"))
		b.says("Registry", "mds (5 of at most 10000 servers)", "charlie", "deleted from its own host")
		b.layouts("registry")
		b.screenshot("status-registry.png", 1000, 900)
		b.click(`a[aria-label="Delete echo"]`, "Delete echo of mds?")
		b.says("it is likely running, and will be back with its next renewal")
		b.layouts("registry-delete")
		b.click("button.danger", "The server was deleted.")
		b.says("mds (4 of at most 10000 servers)", "deleted on the status page")
	})
}
