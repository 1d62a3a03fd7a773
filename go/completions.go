package hanzoai

import (
	"context"
	"net/http"

	"github.com/hanzoai/go-sdk/option"
)

// CompletionService continues texts.
type CompletionService struct{ via transport }

// CompletionCreateParams says what is continued, and how.
type CompletionCreateParams struct {
	// Model is a name that Models.List shows.
	Model Field[string] `json:"model,omitzero"`
	// UserID is whose variant answers.
	UserID Field[string] `json:"user_id,omitzero"`
	// Prompt is the text.
	Prompt Field[string] `json:"prompt,omitzero"`
	// Temperature is 0 to 2.
	Temperature Field[float64] `json:"temperature,omitzero"`
	// Seed makes answers repeatable.
	Seed Field[int64] `json:"seed,omitzero"`
	// MaxTokens is the most tokens of answer.
	MaxTokens Field[int64] `json:"max_tokens,omitzero"`
	// Stop are up to four texts that end the answer.
	Stop Field[[]string] `json:"stop,omitzero"`
}

// Completion is a continuation.
type Completion struct {
	ID      string             `json:"id"`
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []CompletionChoice `json:"choices"`
	Usage   *Usage             `json:"usage"`
}

// CompletionChoice is one of the continuations.
type CompletionChoice struct {
	Index        int64  `json:"index"`
	Text         string `json:"text"`
	FinishReason string `json:"finish_reason"`
}

// Create waits for a whole continuation.
func (s *CompletionService) Create(ctx context.Context, params CompletionCreateParams, options ...option.RequestOption) (*Completion, error) {
	var answer Completion
	if err := s.via.call(ctx, http.MethodPost, "/completions", params, &answer, options); err != nil {
		return nil, err
	}
	return &answer, nil
}

// CreateStreaming gives the continuation as it comes, in pieces of the same shape.
func (s *CompletionService) CreateStreaming(ctx context.Context, params CompletionCreateParams, options ...option.RequestOption) *Stream[Completion] {
	options = append(options[:len(options):len(options)], option.WithJSONSet("stream", true))
	return newStream[Completion](s.via.send(ctx, http.MethodPost, "/completions", params, options))
}
