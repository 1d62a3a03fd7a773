// Package option holds the options of a client and of single requests.
package option

import (
	"fmt"
	"net/http"

	"github.com/hanzoai/go-sdk/internal/config"
)

// RequestOption changes how requests are sent. Given to NewClient it holds for all of them, given to a method for that one.
type RequestOption = config.Option

// WithInferenceMode says where the models are: "local" is a node on this machine (http://127.0.0.1:8080/v1 unless
// WithBaseURL or HANZO_BASE_URL says otherwise), "cloud" is https://api.hanzo.ai/v1. Nothing is started either way.
func WithInferenceMode(mode string) RequestOption {
	return func(c *config.Config) {
		if mode != "local" && mode != "cloud" {
			c.Err = fmt.Errorf("hanzoai: %q is no inference mode; there are \"local\" and \"cloud\"", mode)
		}
		c.Mode = mode
	}
}

// WithBaseURL sends requests to a server, as in "http://127.0.0.1:8080/v1".
func WithBaseURL(base string) RequestOption {
	return func(c *config.Config) { c.BaseURL = base }
}

// WithAPIKey sends a key as a bearer token.
func WithAPIKey(key string) RequestOption {
	return func(c *config.Config) { c.APIKey = key }
}

// WithMaxRetries says how often a request is sent again after a failure that may pass; 0 is never, the default is 2.
func WithMaxRetries(retries int) RequestOption {
	return func(c *config.Config) {
		if retries < 0 {
			c.Err = fmt.Errorf("hanzoai: %d retries; 0 is the least", retries)
		}
		c.MaxRetries = retries
	}
}

// WithHTTPClient sends requests with a client of one's own, for proxies, certificates or timeouts.
func WithHTTPClient(client *http.Client) RequestOption {
	return func(c *config.Config) { c.HTTPClient = client }
}

// WithHeader sends a header.
func WithHeader(name, value string) RequestOption {
	return func(c *config.Config) { c.Header.Set(name, value) }
}

// WithJSONSet sends a field of the body that the parameters have no name for.
func WithJSONSet(name string, value any) RequestOption {
	return func(c *config.Config) { c.Extra[name] = value }
}
