package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"github.com/mimiktech/cluster"
)

const completionTimeout = 2 * time.Second

func (a *app) tokenCommand() *cobra.Command {
	var key cluster.TokenKey
	var plain, show bool
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Fetch a token and show its claims",
		Long: `token fetches an access token from the token service (mST), and shows its claims and its expiry. By
default it is a cluster token, which peers send to each other.

The token is a secret. Only --show prints it, on one line and without its claims. The claims are not
verified, because the token comes from its issuer.`,
		Example: `  clusterctl token
  clusterctl token --audience https://mit.example.com --plain
  curl -H "Authorization: Bearer $(clusterctl token --show)" http://10.0.0.7:8080/mds/v1/things`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key.Cluster = !plain
			return a.token(cmd.Context(), key, show)
		},
	}
	cmd.Flags().StringVar(&key.Audience, "audience", "", "audience of the token (default: that of the servers)")
	cmd.Flags().StringVar(&key.Customer, "customer", "", "customer that the token is for")
	cmd.Flags().BoolVar(&plain, "plain", false, "a token that is not a cluster token")
	cmd.Flags().BoolVar(&show, "show", false, "print the token, which is a secret, and nothing else")
	return cmd
}

func (a *app) token(ctx context.Context, key cluster.TokenKey, show bool) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	if key.Audience == "" {
		key.Audience = s.cfg.PeerAudience
	}
	done := a.progress("fetching a token")
	token, err := s.Token(ctx, key)
	done()
	if err != nil {
		return err
	}
	if show {
		fmt.Fprintln(a.out, token)
		return nil
	}
	claims := claimsOf(token)
	expiry := expiryOf(claims)
	if a.settings.output == outputJSON {
		return a.json(struct {
			Audience  string         `json:"audience"`
			Cluster   bool           `json:"cluster"`
			ExpiresAt time.Time      `json:"expiresAt,omitzero"`
			Claims    map[string]any `json:"claims"`
		}{key.Audience, key.Cluster, expiry, claims})
	}
	rows := [][]string{{"CLAIM", "VALUE"}}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		text := fmt.Sprint(claims[name])
		if at, ok := claims[name].(float64); ok && slices.Contains([]string{"exp", "iat", "nbf"}, name) {
			text = time.Unix(int64(at), 0).UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{name, text})
	}
	a.table(rows)
	switch {
	case claims == nil:
		a.printf("The token is not a JSON Web Token: it has no claims to show.")
	case !expiry.IsZero():
		a.printf("It expires in %s.", short(time.Until(expiry)))
	}
	return nil
}

// claimsOf returns the claims of a token without verifying them; nil if it is not a JWT.
func claimsOf(token string) map[string]any {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil && len(claims) == 0 {
		return nil
	}
	return claims
}

// expiryOf returns the exp of claims; zero if there is none.
func expiryOf(claims jwt.MapClaims) time.Time {
	if exp, err := claims.GetExpirationTime(); err == nil && exp != nil {
		return exp.Time
	}
	return time.Time{}
}
