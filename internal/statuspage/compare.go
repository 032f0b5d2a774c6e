package statuspage

import (
	"cmp"
	"maps"
	"slices"
)

// Compare compares views. A key of views is the id of a node, and its value has the ids of the
// servers in the view of that node. The rows have one server each: first self, then the servers
// that some views lack.
func Compare(self string, views map[string][]string) []CheckRow {
	knownBy := make(map[string]map[string]bool) // the views, by server
	for viewer, ids := range views {
		for _, id := range ids {
			if knownBy[id] == nil {
				knownBy[id] = make(map[string]bool)
			}
			knownBy[id][viewer] = true
		}
	}
	viewers := slices.Sorted(maps.Keys(views))
	rows := make([]CheckRow, 0, len(knownBy))
	for _, id := range slices.Sorted(maps.Keys(knownBy)) {
		row := CheckRow{ID: id, Self: id == self, KnownBy: len(knownBy[id])}
		for _, viewer := range viewers {
			if !knownBy[id][viewer] {
				row.MissingIn = append(row.MissingIn, viewer)
			}
		}
		rows = append(rows, row)
	}
	slices.SortStableFunc(rows, func(a, b CheckRow) int { return cmp.Compare(rank(a), rank(b)) })
	return rows
}

func rank(r CheckRow) int {
	switch {
	case r.Self:
		return 0
	case len(r.MissingIn) > 0:
		return 1
	}
	return 2
}
