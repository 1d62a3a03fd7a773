// Package config holds what options change: the settings of a client, and of one request.
package config

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// Base URLs of the inference modes.
const (
	LocalURL = "http://127.0.0.1:8080/v1"
	CloudURL = "https://api.hanzo.ai/v1"
)

// Config is how requests are sent.
type Config struct {
	BaseURL    string
	APIKey     string
	Mode       string
	MaxRetries int
	HTTPClient *http.Client
	Header     http.Header
	// Extra are fields of the body that the parameters have no name for.
	Extra map[string]any
	// Err is what was wrong with an option; the first request returns it.
	Err error
}

// Option changes a Config.
type Option func(*Config)

// New reads the environment (HANZO_BASE_URL, HANZO_API_KEY) and then the options.
func New(options ...Option) Config {
	config := Config{
		BaseURL:    os.Getenv("HANZO_BASE_URL"),
		APIKey:     os.Getenv("HANZO_API_KEY"),
		Mode:       "local",
		MaxRetries: 2,
		HTTPClient: http.DefaultClient,
		Header:     http.Header{},
	}
	return config.With(options...)
}

// With is a copy with options applied.
func (c Config) With(options ...Option) Config {
	c.Header = c.Header.Clone()
	extra := make(map[string]any, len(c.Extra))
	for name, value := range c.Extra {
		extra[name] = value
	}
	c.Extra = extra
	for _, option := range options {
		option(&c)
	}
	return c
}

// URL is the address of a path below the base URL.
func (c Config) URL(path string) (string, error) {
	if c.Err != nil {
		return "", c.Err
	}
	base := c.BaseURL
	if base == "" {
		switch c.Mode {
		case "local":
			base = LocalURL
		case "cloud":
			base = CloudURL
		}
	}
	if c.Mode == "cloud" && c.APIKey == "" {
		return "", errors.New("hanzoai: the cloud wants a key: option.WithAPIKey or HANZO_API_KEY")
	}
	parsed, err := url.Parse(base)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return "", fmt.Errorf("hanzoai: %q is no base URL; write it as in %s", base, LocalURL)
	}
	base = strings.TrimRight(base, "/")
	if strings.Trim(parsed.Path, "/") == "" {
		// A server's address alone, as other clients take it.
		base += "/v1"
	}
	return base + path, nil
}
