// Package openai points openai-go, the Go client that others wrote, at a running server: its address in OPENAI_BASE_URL, a
// key that may ask for ann alone in OPENAI_API_KEY (test_clients.py starts both), ann's question and answer in QUESTION and
// ANSWER.
package openai

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/openai/openai-go/v3"
)

// The client reads its address and key from the environment.
var client = openai.NewClient()

func chat() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       "tiny-llama",
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(os.Getenv("QUESTION"))},
		MaxTokens:   openai.Int(12),
		Temperature: openai.Float(0),
	}
}

func chatOf(user string) openai.ChatCompletionNewParams {
	params := chat()
	params.User = openai.String(user)
	return params
}

func expect(t *testing.T, said string) {
	t.Helper()
	if said != os.Getenv("ANSWER") {
		t.Errorf("ann's variant said %q", said)
	}
}

func TestTheUserIsAnsweredByTheirVariant(t *testing.T) {
	answer, err := client.Chat.Completions.New(context.Background(), chatOf("ann"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, answer.Choices[0].Message.Content)
	if answer.Usage.CompletionTokens == 0 || answer.Choices[0].FinishReason != "stop" {
		t.Errorf("usage %+v, finish_reason %q", answer.Usage, answer.Choices[0].FinishReason)
	}
}

func TestTheUserMayStandInAFieldThatTheClientDoesNotKnow(t *testing.T) {
	params := chat()
	params.SetExtraFields(map[string]any{"user_id": "ann"})
	answer, err := client.Chat.Completions.New(context.Background(), params)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, answer.Choices[0].Message.Content)
}

func TestAStreamSaysTheSameAndCounts(t *testing.T) {
	params := chatOf("ann")
	params.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	stream := client.Chat.Completions.NewStreaming(context.Background(), params)
	all := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		if !all.AddChunk(stream.Current()) {
			t.Fatalf("%+v does not continue what came before", stream.Current())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	expect(t, all.Choices[0].Message.Content)
	if all.Usage.CompletionTokens == 0 {
		t.Error("a stream without usage")
	}
}

func TestModelsAreListed(t *testing.T) {
	page, err := client.Models.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Data) < 2 || page.Data[0].ID != "tiny-llama" || page.Data[1].ID != "tiny-llama:ann" {
		t.Errorf("%+v", page.Data)
	}
}

func TestAnErrorHasStatusAndCode(t *testing.T) {
	_, err := client.Chat.Completions.New(context.Background(), chatOf("bob"))
	var refused *openai.Error
	if !errors.As(err, &refused) || refused.StatusCode != 403 || refused.Code == "" || refused.Message == "" {
		t.Errorf("%v", err)
	}
}
