package hanzoai

import (
	"context"
	"net/http"

	"github.com/hanzoai/go-sdk/option"
)

// ChatService answers conversations.
type ChatService struct {
	// Completions makes answers.
	Completions *ChatCompletionService
}

// ChatCompletionService makes answers to conversations.
type ChatCompletionService struct{ via transport }

// ChatCompletionMessageParam is one turn of a conversation.
type ChatCompletionMessageParam struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// SystemMessage is what the model is told before the conversation.
func SystemMessage(content string) ChatCompletionMessageParam {
	return ChatCompletionMessageParam{Role: "system", Content: content}
}

// UserMessage is a turn of the user's.
func UserMessage(content string) ChatCompletionMessageParam {
	return ChatCompletionMessageParam{Role: "user", Content: content}
}

// AssistantMessage is a turn of the model's.
func AssistantMessage(content string) ChatCompletionMessageParam {
	return ChatCompletionMessageParam{Role: "assistant", Content: content}
}

// ChatCompletionCreateParams says what is asked. What is left out is the server's choice.
type ChatCompletionCreateParams struct {
	// Model is a name that Models.List shows.
	Model Field[string] `json:"model,omitzero"`
	// UserID is whose variant answers; the base does where it is left out.
	UserID Field[string] `json:"user_id,omitzero"`
	// Messages is the conversation.
	Messages Field[[]ChatCompletionMessageParam] `json:"messages,omitzero"`
	// Temperature is 0 to 2; 0 answers with the likeliest token.
	Temperature Field[float64] `json:"temperature,omitzero"`
	// TopP keeps the likeliest tokens that hold this much probability.
	TopP Field[float64] `json:"top_p,omitzero"`
	// Seed makes answers repeatable.
	Seed Field[int64] `json:"seed,omitzero"`
	// MaxTokens is the most tokens of answer.
	MaxTokens Field[int64] `json:"max_tokens,omitzero"`
	// Stop are up to four texts that end the answer.
	Stop Field[[]string] `json:"stop,omitzero"`
	// N is the number of answers.
	N Field[int64] `json:"n,omitzero"`
	// Logprobs asks for the tokens' log-probabilities.
	Logprobs Field[bool] `json:"logprobs,omitzero"`
	// TopLogprobs asks for so many likeliest tokens beside each.
	TopLogprobs Field[int64] `json:"top_logprobs,omitzero"`
	// ResponseFormat is the form that the answer must have.
	ResponseFormat Field[ResponseFormat] `json:"response_format,omitzero"`
	// StreamOptions holds for CreateStreaming.
	StreamOptions Field[StreamOptions] `json:"stream_options,omitzero"`
}

// StreamOptions says what a stream brings beside text.
type StreamOptions struct {
	// IncludeUsage asks for a last chunk with the token counts.
	IncludeUsage bool `json:"include_usage"`
}

// ResponseFormat is the form of an answer.
type ResponseFormat struct {
	Type       string            `json:"type"`
	JSONSchema *JSONSchemaFormat `json:"json_schema,omitempty"`
}

// JSONSchemaFormat is a named JSON schema.
type JSONSchemaFormat struct {
	Name   string `json:"name"`
	Schema any    `json:"schema"`
}

// JSONObject asks for any JSON object.
func JSONObject() ResponseFormat { return ResponseFormat{Type: "json_object"} }

// JSONSchema asks for an answer that fits a JSON schema.
func JSONSchema(name string, schema any) ResponseFormat {
	return ResponseFormat{Type: "json_schema", JSONSchema: &JSONSchemaFormat{Name: name, Schema: schema}}
}

// ChatCompletion is an answer.
type ChatCompletion struct {
	ID                string                 `json:"id"`
	Object            string                 `json:"object"`
	Created           int64                  `json:"created"`
	Model             string                 `json:"model"`
	SystemFingerprint string                 `json:"system_fingerprint"`
	Choices           []ChatCompletionChoice `json:"choices"`
	Usage             Usage                  `json:"usage"`
}

// ChatCompletionChoice is one of the answers that were asked for.
type ChatCompletionChoice struct {
	Index        int64                 `json:"index"`
	Message      ChatCompletionMessage `json:"message"`
	FinishReason string                `json:"finish_reason"`
	Logprobs     *ChatLogprobs         `json:"logprobs"`
}

// ChatCompletionMessage is what the model says.
type ChatCompletionMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// ChatLogprobs are the log-probabilities of an answer's tokens.
type ChatLogprobs struct {
	Content []TokenLogprob `json:"content"`
}

// TokenLogprob is one token with its log-probability and the likeliest ones in its place.
type TokenLogprob struct {
	Token       string         `json:"token"`
	Logprob     float64        `json:"logprob"`
	Bytes       []int          `json:"bytes"`
	TopLogprobs []TokenLogprob `json:"top_logprobs"`
}

// Usage counts tokens.
type Usage struct {
	PromptTokens        int64        `json:"prompt_tokens"`
	CompletionTokens    int64        `json:"completion_tokens"`
	TotalTokens         int64        `json:"total_tokens"`
	PromptTokensDetails UsageDetails `json:"prompt_tokens_details"`
}

// UsageDetails says more of the prompt's tokens.
type UsageDetails struct {
	// CachedTokens were computed for an earlier request.
	CachedTokens int64 `json:"cached_tokens"`
}

// ChatCompletionChunk is a piece of a streamed answer.
type ChatCompletionChunk struct {
	ID                string                      `json:"id"`
	Created           int64                       `json:"created"`
	Model             string                      `json:"model"`
	SystemFingerprint string                      `json:"system_fingerprint"`
	Choices           []ChatCompletionChunkChoice `json:"choices"`
	// Usage is there in the last chunk, if it was asked for.
	Usage *Usage `json:"usage"`
}

// ChatCompletionChunkChoice is what a chunk adds to one of the answers.
type ChatCompletionChunkChoice struct {
	Index        int64                 `json:"index"`
	Delta        ChatCompletionMessage `json:"delta"`
	FinishReason string                `json:"finish_reason"`
	Logprobs     *ChatLogprobs         `json:"logprobs"`
}

// Create waits for a whole answer.
func (s *ChatCompletionService) Create(ctx context.Context, params ChatCompletionCreateParams, options ...option.RequestOption) (*ChatCompletion, error) {
	var answer ChatCompletion
	if err := s.via.call(ctx, http.MethodPost, "/chat/completions", params, &answer, options); err != nil {
		return nil, err
	}
	return &answer, nil
}

// CreateStreaming gives the answer as it comes. Cancelling ctx, or closing the stream, ends it.
func (s *ChatCompletionService) CreateStreaming(ctx context.Context, params ChatCompletionCreateParams, options ...option.RequestOption) *Stream[ChatCompletionChunk] {
	options = append(options[:len(options):len(options)], option.WithJSONSet("stream", true))
	return newStream[ChatCompletionChunk](s.via.send(ctx, http.MethodPost, "/chat/completions", params, options))
}
