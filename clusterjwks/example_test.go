package clusterjwks_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster/clusterjwks"
)

func Example() {
	// A token service with one key, which it publishes.
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	tokenService := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"2030-01","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
	}))
	defer tokenService.Close()

	// In a service: cfg := clusterjwks.FromEnv()
	verifier, err := clusterjwks.New(clusterjwks.Config{
		URL:      tokenService.URL,
		Issuer:   "https://mst.example/oauth/token",
		Audience: "mds",
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	// A node verifies the tokens of its callers if it is created with cluster.WithVerifier(verifier).
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": "https://mst.example/oauth/token", "aud": "mds", "sub": "a-client", "exp": time.Now().Add(time.Hour).Unix(),
	})
	token.Header["kid"] = "2030-01"
	text, err := token.SignedString(private)
	if err != nil {
		fmt.Println(err)
		return
	}
	claims, err := verifier.Verify(context.Background(), text)
	fmt.Println(claims.Subject, err)

	_, err = verifier.Verify(context.Background(), text[:len(text)-8])
	fmt.Println(err)
	// Output:
	// a-client <nil>
	// token with a bad signature
}
