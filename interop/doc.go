// Package interop holds the proof that nodes of this module and nodes of the npm module live in
// one cluster: its tests start both as processes of their own, on loopback, around one registry,
// and look at what each does to the other. The npm nodes are the published module, unchanged;
// where it and this module differ on purpose, a test says so.
//
// The tests need Node.js and npm, and install the module on their first run. Without these they
// are skipped, or fail if INTEROP=require. The mixed soak runs for as long as INTEROP_SOAK says,
// such as 10m, from the seed in INTEROP_SEED.
package interop
