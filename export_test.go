package cluster

// PlacesTaken is how many requests to peers the scheduler takes to be under way.
func PlacesTaken(c *Cluster) int { return c.scheduler.InFlight() }
