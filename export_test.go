package cluster

// PlacesTaken is how many requests to peers the gate takes to be under way.
func PlacesTaken(c *Cluster) int {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	return c.gate.taken
}
