//go:build unix

package interop

import "github.com/mimiktech/cluster"

func guestScenarios() []scenario {
	return []scenario{
		{
			name:     "guest reads the view of a node",
			shows:    "A guest reads the view of a node of either kind, or the list of the registry, and calls all nodes. No node and no registry lists it.",
			runMixed: guestOfTheCluster,
		},
	}
}

func guestOfTheCluster(m *mixed) {
	all := sortedIDs(m.nodes)
	registrations := len(m.requests("POST " + registryPath))
	g, err := cluster.Observe(cluster.Config{
		Type: serverType, RegistryURL: m.url + registryPath, RegistryAudience: registryAudience, PeerAudience: peerAudience,
		Issuer: m.issuer(), ClientID: serverType, ClientSecret: cluster.Secret(secretOf(serverType)),
	})
	if err != nil {
		m.Fatal(err)
	}
	defer g.Close()
	check := func(source string, err error) {
		m.Helper()
		if err != nil {
			m.Errorf("%s: %v", source, err)
			return
		}
		if err := checkEqual(serverIDs(g.Servers()), all); err != nil || g.ResourceID() != resourceID() {
			m.Errorf("%s: %v, itResource %s", source, err, g.ResourceID())
		}
		res, err := g.RPCluster(m.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			m.Fatal(err)
		}
		var ids []string
		for _, o := range res.Results {
			ids = append(ids, o.Server.ServerID)
		}
		if err := checkEqual(ids, all); err != nil {
			m.Errorf("%s: results: %v; failures: %v", source, err, res.Failures)
		}
	}
	for _, k := range kinds() {
		n := m.firstOf(k)
		check(n.id, g.ReadServer(m.Context(), n.base))
	}
	check("registry", g.ReadRegistry(m.Context()))
	m.waitForMembers(m.nodes...)
	if n := len(m.requests("POST " + registryPath)); n != registrations {
		m.Errorf("%d registrations of a guest", n-registrations)
	}
}
