package hanzoai_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/hanzoai/go-sdk"
	"github.com/hanzoai/go-sdk/option"
)

// The snippet of the ZIP-7 page, with its response used.
func Example() {
	client := hanzoai.NewClient(
		option.WithInferenceMode("local"),
	)

	// Serve BitDelta variant
	response, _ := client.Chat.Completions.Create(
		context.Background(),
		hanzoai.ChatCompletionCreateParams{
			Model:  hanzoai.F("qwen3-4b"),
			UserID: hanzoai.F("user_123"), // Loads BitDelta variant
			Messages: hanzoai.F([]hanzoai.ChatCompletionMessageParam{
				hanzoai.UserMessage("Hello!"),
			}),
		},
	)
	fmt.Println(response.Model, response.Choices[0].Message.Role)
	// Output: qwen3-4b assistant
}

func ExampleChatCompletionService_CreateStreaming() {
	client := hanzoai.NewClient(option.WithMaxRetries(4))
	stream := client.Chat.Completions.CreateStreaming(context.Background(), hanzoai.ChatCompletionCreateParams{
		Model:     hanzoai.F("qwen3-4b"),
		UserID:    hanzoai.F("user_123"),
		Messages:  hanzoai.F([]hanzoai.ChatCompletionMessageParam{hanzoai.UserMessage("Hello!")}),
		MaxTokens: hanzoai.F(int64(12)),
	})
	text, ended := "", false
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text += choice.Delta.Content
			ended = choice.FinishReason != ""
		}
	}
	// text is what the variant says.
	fmt.Println(ended, stream.Err())
	// Output: true <nil>
}

func ExampleError() {
	client := hanzoai.NewClient()
	_, err := client.Chat.Completions.Create(context.Background(), hanzoai.ChatCompletionCreateParams{
		Model:    hanzoai.F("qwen3-4b"),
		UserID:   hanzoai.F("nobody"),
		Messages: hanzoai.F([]hanzoai.ChatCompletionMessageParam{hanzoai.UserMessage("Hello!")}),
	})
	var answered *hanzoai.Error
	if errors.As(err, &answered) && errors.Is(err, hanzoai.ErrNotFound) {
		fmt.Println(answered.StatusCode, answered.Code)
	}
	// Output: 404 variant_not_found
}

func ExampleModelService_List() {
	models, err := hanzoai.NewClient().Models.List(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(models[0].ID)
	// Output: tiny-llama
}
