package token

import (
	"context"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
)

// BenchmarkToken looks up a token that is there, as every request does.
func BenchmarkToken(b *testing.B) {
	cache := NewCache(b.Context(), func(context.Context, Key, string) (*oauth2.Token, error) {
		return &oauth2.Token{AccessToken: "access", Expiry: time.Now().Add(24 * time.Hour)}, nil
	})
	key := Key{Audience: "https://peers.example.com", Cluster: true}
	getToken := func() bool {
		access, err := cache.Token(b.Context(), key)
		return err == nil && access != ""
	}
	getToken() // the first fetches
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !getToken() {
				b.Fatal("no token")
			}
		}
	})
	b.Run("in parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if !getToken() {
					b.Error("no token")
				}
			}
		})
	})
}

// BenchmarkVerify checks a token as every incoming request does.
func BenchmarkVerify(b *testing.B) {
	const issuer, audience, key = "https://mst.example.com", "https://peers.example.com", "key"
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": issuer, "aud": audience, "sub": "mds@clients", "subType": "mds", "type": "cluster",
		"scope": "create:itResource delete:server", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString([]byte(key))
	if err != nil {
		b.Fatal(err)
	}
	v := NewVerifier(issuer, audience, key)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(text); err != nil {
			b.Fatal(err)
		}
	}
}
