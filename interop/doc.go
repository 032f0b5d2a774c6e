// Package interop tests that nodes of this module and nodes of the npm module form one cluster. Its
// tests start nodes of both kinds as processes of their own, on loopback addresses, with one
// registry (mIT) and one token service (mST). The npm nodes use the published module, unchanged.
// Where the two modules differ on purpose, a test says so.
//
// The tests need Node.js and npm, and install the npm module on their first run. If these are
// missing, the tests are skipped. By default some scenarios run. With INTEROP=require all of them
// do, and none may be skipped. INTEROP_SOAK sets the duration of the soak test, such as 10m, and
// INTEROP_SEED its random seed.
package interop
