package config

import "testing"

// Other clients take a server's address alone: so does this one.
func TestAnAddressAloneMeansItsAPI(t *testing.T) {
	for base, want := range map[string]string{
		"http://127.0.0.1:8080":          "http://127.0.0.1:8080/v1/models",
		"http://127.0.0.1:8080/":         "http://127.0.0.1:8080/v1/models",
		"http://127.0.0.1:8080/v1/":      "http://127.0.0.1:8080/v1/models",
		"https://proxy.example/node/api": "https://proxy.example/node/api/models",
	} {
		got, err := Config{BaseURL: base}.URL("/models")
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", base, got, err, want)
		}
	}
}
