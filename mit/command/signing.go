package command

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

// readSigningKeys reads private keys in PEM: PKCS #8, PKCS #1 or SEC 1. Its error does not quote
// the file.
func readSigningKeys(name string) (keys []crypto.Signer, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("--signing-key: %w", err)
	}
	// "openssl ecparam -genkey" writes a block with the parameters before the key.
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if key := parsePrivateKey(block.Bytes); key != nil {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("--signing-key: %s has no private key in PEM", name)
	}
	return keys, nil
}

// parsePrivateKey returns nil if der is not a private key.
func parsePrivateKey(der []byte) crypto.Signer {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		signer, _ := key.(crypto.Signer)
		return signer
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	return nil
}
