// Command figures measures how many servers a registry can keep, in memory and on etcd, and prints
// the rows of a table in Markdown. It runs registries and etcd in one process, and the members of
// etcd wait for their disk: what it says is about the machine it runs on, and for comparing.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

const (
	typ  = "mds"
	life = 3 * time.Hour // of an entry, with the default lease
)

type settings struct {
	sizes   []int
	lives   []time.Duration
	workers int
	during  time.Duration
}

func main() {
	sizes := flag.String("servers", "100,1000,10000", "`numbers` of servers")
	s := settings{lives: []time.Duration{3 * time.Second, 15 * time.Second, time.Minute}}
	flag.IntVar(&s.workers, "workers", 32, "callers at once")
	flag.DurationVar(&s.during, "during", 4*time.Second, "time that renewals are measured for")
	flag.Parse()
	for size := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "figures: invalid --servers %q\n", *sizes)
			os.Exit(1)
		}
		s.sizes = append(s.sizes, n)
	}
	if err := s.run(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "figures: %v\n", err)
		os.Exit(1)
	}
}

func (s settings) run(ctx context.Context) error {
	fmt.Println("| store | replicas | servers | registrations/s | renewals/s | p50 | p99 | renewals/s with answers | p50 | p99 | an answer | and takes |")
	fmt.Println("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, n := range s.sizes {
		if err := s.row(ctx, "memory", []mit.Store{mit.NewMemory()}, n); err != nil {
			return err
		}
		for _, members := range []int{1, 3} {
			for _, replicas := range []int{1, 3} {
				err := s.onEtcd(ctx, members, replicas, func(stores []mit.Store) error {
					return s.row(ctx, fmt.Sprintf("etcd, %d", members), stores, n)
				})
				if err != nil {
					return err
				}
			}
		}
	}
	fmt.Println("\n| an entry is to live | in memory it is gone after | on etcd, at the earliest | median | at the latest |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: |")
	return s.onEtcd(ctx, 1, 1, func(stores []mit.Store) error {
		var wg sync.WaitGroup
		rows := make([]string, len(s.lives))
		errs := make([]error, len(s.lives))
		for i, life := range s.lives {
			wg.Go(func() { rows[i], errs[i] = expiry(ctx, stores[0], life) })
		}
		wg.Wait()
		fmt.Print(strings.Join(rows, ""))
		return errors.Join(errs...)
	})
}

// expiry measures for how long silent servers are listed that are to live for some time: some register
// one after the other, as nodes do, and so share leases of etcd.
func expiry(ctx context.Context, store mit.Store, life time.Duration) (string, error) {
	reg := registration(0)
	reg.Type = fmt.Sprint("life-", life)
	memory := mit.NewMemory()
	if _, err := memory.Put(ctx, reg, life); err != nil {
		return "", err
	}
	began := time.Now()
	gone := func(store mit.Store, id string) (bool, error) {
		res, err := store.Get(ctx, mit.ResourceID(reg.Type))
		if err != nil && !errors.Is(err, mit.ErrNotFound) {
			return false, err
		}
		return !slices.ContainsFunc(res.Servers, func(s cluster.Server) bool { return s.ServerID == id }), nil
	}
	since := map[string]time.Time{}
	for i := range 40 {
		reg.ServerID = fmt.Sprint(i)
		if _, err := store.Put(ctx, reg, life); err != nil {
			return "", err
		}
		since[reg.ServerID] = time.Now()
		time.Sleep(life / 100)
	}
	var took []time.Duration
	inMemory := time.Duration(0)
	for len(since) > 0 || inMemory == 0 {
		if is, err := gone(memory, registration(0).ServerID); err != nil {
			return "", err
		} else if is && inMemory == 0 {
			inMemory = time.Since(began)
		}
		for id, registered := range since {
			is, err := gone(store, id)
			if err != nil {
				return "", err
			}
			if is {
				took = append(took, time.Since(registered))
				delete(since, id)
			}
		}
		if time.Since(began) > 3*life+time.Minute {
			return "", fmt.Errorf("after %v there are servers left that were to live for %v", time.Since(began), life)
		}
		time.Sleep(10 * time.Millisecond)
	}
	slices.Sort(took)
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s" }
	return fmt.Sprintf("| %v | %s | %s | %s | %s |\n", life, seconds(inMemory), seconds(took[0]), seconds(took[len(took)/2]), seconds(took[len(took)-1])), nil
}

// onEtcd measures with stores on an etcd of their own.
func (s settings) onEtcd(ctx context.Context, members, replicas int, measure func([]mit.Store) error) (err error) {
	dir, err := os.MkdirTemp("", "figures")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := etcdtest.Start(etcdtest.Options{Members: members, Dir: dir, Durable: true, HeartbeatInterval: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	defer c.Close()
	var stores []mit.Store
	for range replicas {
		store, err := etcd.Open(ctx, etcd.Config{Endpoints: c.Endpoints})
		if err != nil {
			return err
		}
		defer store.Close()
		stores = append(stores, store)
	}
	return measure(stores)
}

// row measures stores that are one registry, empty at first.
func (s settings) row(ctx context.Context, name string, stores []mit.Store, n int) error {
	put := func(i int) error {
		_, err := stores[i%len(stores)].Put(ctx, registration(i), life)
		return err
	}
	var registries []*mit.Registry
	for _, store := range stores {
		registry, err := mit.NewRegistry(store, mit.RegistryConfig{
			MaxServers: 2 * n,
			Verify:     func(string) (string, error) { return typ, nil },
		})
		if err != nil {
			return err
		}
		registries = append(registries, registry)
	}
	var size atomic.Int64
	post := func(i int) error {
		reg := registration(i)
		body := fmt.Sprintf(`{"type":%q,"serverId":%q,"publicBaseUrl":%q,"clusterBaseUrl":%q,"location":%s}`,
			reg.Type, reg.ServerID, reg.PublicBaseURL, reg.ClusterBaseURL, reg.Location)
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/itResources", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer t")
		w := httptest.NewRecorder()
		registries[i%len(registries)].ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			return fmt.Errorf("answered %d: %s", w.Code, w.Body)
		}
		size.Store(int64(w.Body.Len()))
		return nil
	}

	filled, err := s.measure(n, func(i int) bool { return i < n }, put)
	if err != nil {
		return err
	}
	puts, err := s.timed(n, s.workers, put)
	if err != nil {
		return err
	}
	posts, err := s.timed(n, s.workers, post)
	if err != nil {
		return err
	}
	alone, err := s.timed(n, 1, post)
	if err != nil {
		return err
	}
	fmt.Printf("| %s | %d | %d | %.0f | %.0f | %s | %s | %.0f | %s | %s | %.1f kB | %s |\n", name, len(stores), n,
		filled.rate, puts.rate, ms(puts.p50), ms(puts.p99), posts.rate, ms(posts.p50), ms(posts.p99), float64(size.Load())/1000, ms(alone.p50))
	return nil
}

func ms(d time.Duration) string {
	prec := 0
	if d < 10*time.Millisecond {
		prec = 2
	}
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', prec, 64) + " ms"
}

func registration(i int) mit.Registration {
	return mit.Registration{
		Type:           typ,
		ServerID:       fmt.Sprintf("0e9f1c52-6f0b-4b57-9c1f-%012d", i), // as long as a UUID
		Location:       []byte(`{"type":"Point","coordinates":[2.35,48.86]}`),
		PublicBaseURL:  "https://example.com/mds/v1",
		ClusterBaseURL: fmt.Sprintf("http://10.%d.%d.%d:8080/mds/v1", i>>16&255, i>>8&255, i&255),
	}
}

type figures struct {
	rate     float64 // calls per second
	p50, p99 time.Duration
}

// timed measures calls for some time, those of the n servers in turn.
func (s settings) timed(n, workers int, call func(i int) error) (figures, error) {
	s.workers = workers
	end := time.Now().Add(s.during)
	return s.measure(n, func(int) bool { return time.Now().Before(end) }, call)
}

// measure makes calls, some at once, while there is one more to make.
func (s settings) measure(n int, more func(i int) bool, call func(i int) error) (figures, error) {
	var (
		wg    sync.WaitGroup
		next  atomic.Int64
		took  = make([][]time.Duration, s.workers)
		errs  = make([]error, s.workers)
		start = time.Now()
	)
	for w := range s.workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if !more(i) {
					return
				}
				began := time.Now()
				if errs[w] = call(i % n); errs[w] != nil {
					return
				}
				took[w] = append(took[w], time.Since(began))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.SortFunc(all, cmp.Compare[time.Duration])
	if err := errors.Join(errs...); err != nil || len(all) == 0 {
		return figures{}, cmp.Or(err, errors.New("no call came to an end"))
	}
	return figures{
		rate: float64(len(all)) / time.Since(start).Seconds(),
		p50:  all[len(all)/2],
		p99:  all[len(all)*99/100],
	}, nil
}
