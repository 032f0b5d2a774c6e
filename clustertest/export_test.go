package clustertest

// Kinds returns the kinds of the events of a run.
func (r *Run) Kinds() []string {
	var names []string
	for _, e := range r.events {
		names = append(names, e.Kind)
	}
	return names
}
