package token

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
)

type sourceFunc func() (*oauth2.Token, error)

func (f sourceFunc) Token() (*oauth2.Token, error) { return f() }

func TestFromSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := map[Key]int{}
		c := NewCache(t.Context(), FromSources(func(key Key) oauth2.TokenSource {
			made[key]++
			switch key.Audience {
			case "none":
				return nil
			case "down":
				return sourceFunc(func() (*oauth2.Token, error) { return nil, errDown })
			}
			return oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "static-" + key.Audience})
		}))
		for range 3 {
			want(t, c, Key{Audience: "a"}, "static-a")
			want(t, c, Key{Audience: "b"}, "static-b")
			c.Drop(Key{Audience: "a"}, "static-a")
			if _, err := c.Token(t.Context(), Key{Audience: "none"}); err == nil || err.Error() != "no token source for this key" {
				t.Errorf("without a source: %v", err)
			}
			if _, err := c.Token(t.Context(), Key{Audience: "down"}); !errors.Is(err, errDown) {
				t.Errorf("with a broken source: %v", err)
			}
		}
		for key, n := range made {
			if n != 1 {
				t.Errorf("the source of %v was made %d times", key, n)
			}
		}
	})
}

func TestHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		fetch := FromSources(func(Key) oauth2.TokenSource {
			return sourceFunc(func() (*oauth2.Token, error) {
				asked++
				time.Sleep(time.Hour)
				return &oauth2.Token{AccessToken: "late"}, nil
			})
		})
		for range 3 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errDown)
			if _, err := fetch(ctx, peers(), ""); !errors.Is(err, errDown) {
				t.Errorf("fetch: %v", err)
			}
			cancel()
		}
		synctest.Wait()
		if asked != 1 {
			t.Errorf("asked %d times while the first was under way", asked)
		}
		time.Sleep(time.Hour) // it ends when the source does
	})
}
