// Command figures measures how many servers a registry can keep, in memory and on etcd, and prints
// Markdown tables. Registries and etcd run in one process, and members of etcd wait for the disk:
// compare figures of one machine only.
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
	typ      = "mds"
	entryTTL = 3 * time.Hour // with the default lease
)

type settings struct {
	sizes    []int
	ttls     []time.Duration
	workers  int
	duration time.Duration
}

func main() {
	sizes := flag.String("servers", "100,1000,10000", "`numbers` of servers")
	s := settings{ttls: []time.Duration{3 * time.Second, 15 * time.Second, time.Minute}}
	flag.IntVar(&s.workers, "workers", 32, "concurrent callers")
	flag.DurationVar(&s.duration, "during", 4*time.Second, "`time` to measure renewals for")
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
	fmt.Println("| store | replicas | servers | registrations/s | renewals/s | p50 | p99 | renewals/s with responses | p50 | p99 | response size | response time |")
	fmt.Println("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, n := range s.sizes {
		if err := s.row(ctx, "memory", []mit.Store{mit.NewMemory()}, n); err != nil {
			return err
		}
		for _, members := range []int{1, 3} {
			for _, replicas := range []int{1, 3} {
				err := s.withEtcd(ctx, members, replicas, func(stores []mit.Store) error {
					return s.row(ctx, fmt.Sprintf("etcd, %d", members), stores, n)
				})
				if err != nil {
					return err
				}
			}
		}
	}
	fmt.Println("\n| TTL of an entry | expired in memory after | on etcd, earliest | median | latest |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: |")
	return s.withEtcd(ctx, 1, 1, func(stores []mit.Store) error {
		var wg sync.WaitGroup
		rows := make([]string, len(s.ttls))
		errs := make([]error, len(s.ttls))
		for i, ttl := range s.ttls {
			wg.Go(func() { rows[i], errs[i] = expiry(ctx, stores[0], ttl) })
		}
		wg.Wait()
		fmt.Print(strings.Join(rows, ""))
		return errors.Join(errs...)
	})
}

// expiry measures how long servers remain listed without renewal. They register one after another,
// so that they share leases of etcd, as nodes do.
func expiry(ctx context.Context, store mit.Store, ttl time.Duration) (string, error) {
	reg := registration(0)
	reg.Type = fmt.Sprint("ttl-", ttl)
	memory := mit.NewMemory()
	if _, err := memory.Put(ctx, reg, ttl); err != nil {
		return "", err
	}
	began := time.Now()
	registeredAt := map[string]time.Time{}
	for i := range 40 {
		reg.ServerID = fmt.Sprint(i)
		if _, err := store.Put(ctx, reg, ttl); err != nil {
			return "", err
		}
		registeredAt[reg.ServerID] = time.Now()
		time.Sleep(ttl / 100)
	}
	var took []time.Duration
	inMemory := time.Duration(0)
	for len(registeredAt) > 0 || inMemory == 0 {
		ids, err := listed(ctx, memory, reg.Type)
		if err != nil {
			return "", err
		}
		if inMemory == 0 && len(ids) == 0 {
			inMemory = time.Since(began)
		}
		if ids, err = listed(ctx, store, reg.Type); err != nil {
			return "", err
		}
		for id, registered := range registeredAt {
			if !ids[id] {
				took = append(took, time.Since(registered))
				delete(registeredAt, id)
			}
		}
		if time.Since(began) > 3*ttl+time.Minute {
			return "", fmt.Errorf("after %v, servers with a TTL of %v are still listed", time.Since(began), ttl)
		}
		time.Sleep(10 * time.Millisecond)
	}
	slices.Sort(took)
	return fmt.Sprintf("| %v | %s | %s | %s | %s |\n", ttl, seconds(inMemory), seconds(took[0]), seconds(took[len(took)/2]), seconds(took[len(took)-1])), nil
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s" }

// listed returns the ids of the servers of a type.
func listed(ctx context.Context, store mit.Store, typ string) (map[string]bool, error) {
	res, err := store.Get(ctx, mit.ResourceID(typ))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		return nil, err
	}
	ids := make(map[string]bool, len(res.Servers))
	for _, s := range res.Servers {
		ids[s.ServerID] = true
	}
	return ids, nil
}

// withEtcd calls measure with stores on a new etcd.
func (s settings) withEtcd(ctx context.Context, members, replicas int, measure func([]mit.Store) error) (err error) {
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

// row measures replicas of one registry, empty at first.
func (s settings) row(ctx context.Context, name string, stores []mit.Store, n int) error {
	put := func(i int) error {
		_, err := stores[i%len(stores)].Put(ctx, registration(i), entryTTL)
		return err
	}
	var registries []*mit.Registry
	for _, store := range stores {
		registry, err := mit.NewRegistry(store, mit.RegistryConfig{
			MaxServers: 2 * n,
			Verify:     func(string) (cluster.Claims, error) { return cluster.Claims{SubType: typ}, nil },
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
			return fmt.Errorf("status %d: %s", w.Code, w.Body)
		}
		size.Store(int64(w.Body.Len()))
		return nil
	}

	filled, err := s.measure(n, func(i int) bool { return i < n }, put)
	if err != nil {
		return err
	}
	puts, err := s.measureFor(n, s.workers, put)
	if err != nil {
		return err
	}
	posts, err := s.measureFor(n, s.workers, post)
	if err != nil {
		return err
	}
	alone, err := s.measureFor(n, 1, post)
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

// measureFor measures calls for the configured duration, for each of n servers in turn.
func (s settings) measureFor(n, workers int, call func(i int) error) (figures, error) {
	s.workers = workers
	end := time.Now().Add(s.duration)
	return s.measure(n, func(int) bool { return time.Now().Before(end) }, call)
}

// measure makes concurrent calls while more returns true.
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
		return figures{}, cmp.Or(err, errors.New("no call has completed"))
	}
	return figures{
		rate: float64(len(all)) / time.Since(start).Seconds(),
		p50:  all[len(all)/2],
		p99:  all[len(all)*99/100],
	}, nil
}
