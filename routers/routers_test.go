package routers

import (
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	fiber2 "github.com/gofiber/fiber/v2"
	adaptor2 "github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/adaptor"
	"github.com/gorilla/mux"
	echo4 "github.com/labstack/echo/v4"
	"github.com/labstack/echo/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/routers/internal/nodes"
)

func path(c *cluster.Cluster) string { return c.Config().BasePath + "/things" }

func TestNetHTTP(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := http.NewServeMux()
		c.Mount(router)
		router.Handle("GET "+path(c), things)
		return router
	})
}

func TestChi(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := chi.NewRouter()
		c.Mount(router)
		router.Method(http.MethodGet, path(c), things)
		return router
	})
}

func TestGorilla(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := mux.NewRouter()
		for _, r := range c.Routes() {
			router.Handle(r.Pattern, r.Handler).Methods(r.Method)
		}
		router.Handle(path(c), things).Methods(http.MethodGet)
		return router
	})
}

func TestGin(t *testing.T) {
	gin.SetMode(gin.ReleaseMode) // prints nothing
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := gin.New()
		for _, r := range c.Routes() {
			router.Handle(r.Method, r.ColonPattern(), gin.WrapH(r.Handler))
		}
		router.GET(path(c), gin.WrapH(things))
		return router
	})
}

func TestEcho(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := echo.New()
		for _, r := range c.Routes() {
			router.Add(r.Method, r.ColonPattern(), echo.WrapHandler(r.Handler))
		}
		router.GET(path(c), echo.WrapHandler(things))
		return router
	})
}

func TestEcho4(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := echo4.New()
		for _, r := range c.Routes() {
			router.Add(r.Method, r.ColonPattern(), echo4.WrapHandler(r.Handler))
		}
		router.GET(path(c), echo4.WrapHandler(things))
		return router
	})
}

func TestFiber(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := fiber.New()
		for _, r := range c.Routes() {
			router.Add([]string{r.Method}, r.ColonPattern(), adaptor.HTTPHandler(r.Handler))
		}
		router.Get(path(c), adaptor.HTTPHandler(things))
		return adaptor.FiberApp(router)
	})
}

func TestFiber2(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := fiber2.New()
		for _, r := range c.Routes() {
			router.Add(r.Method, r.ColonPattern(), adaptor2.HTTPHandler(r.Handler))
		}
		router.Get(path(c), adaptor2.HTTPHandler(things))
		return adaptor2.FiberApp(router)
	})
}

// The lines in README.md are those of the tests, which spell some packages with a number.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, name := range []string{"routers_test.go", "chi508/chi_test.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests.WriteString(regexp.MustCompile(`(echo|fiber|adaptor)\d`).ReplaceAllString(string(text), "$1"))
	}
	lines := regexp.MustCompile("(?m)^\\| .* \\| `(.*)` \\|$").FindAllStringSubmatch(string(readme), -1)
	if len(lines) < 8 {
		t.Errorf("%d lines of code in README.md", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(tests.String(), "\t"+line[1]+"\n") {
			t.Errorf("not in the tests: %s", line[1])
		}
	}
}
