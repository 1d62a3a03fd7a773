// Package hanzoai asks a Hanzo node, or any OpenAI-compatible server, for answers from a base model and from users'
// variants of it.
//
// It starts nothing by itself: run a node first, as in
//
//	hanzo-node start --enable-bitdelta --variants-dir ./variants --model ./base --model-name qwen3-4b
package hanzoai

import (
	"github.com/hanzoai/go-sdk/internal/config"
	"github.com/hanzoai/go-sdk/option"
)

// Client sends requests. It is safe for use by many goroutines.
type Client struct {
	// Chat answers conversations.
	Chat *ChatService
	// Completions continues texts.
	Completions *CompletionService
	// Models lists what may be asked for.
	Models *ModelService
	// Variants publishes and trains users' variants.
	Variants *VariantService
}

// NewClient is a client with these options, after those of the environment (HANZO_BASE_URL, HANZO_API_KEY). An option
// that cannot be is reported by the first request.
func NewClient(options ...option.RequestOption) *Client {
	via := transport{config: config.New(options...)}
	return &Client{
		Chat:        &ChatService{Completions: &ChatCompletionService{via}},
		Completions: &CompletionService{via},
		Models:      &ModelService{via},
		Variants:    &VariantService{via},
	}
}
