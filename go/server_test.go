package hanzoai_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	hanzoai "github.com/hanzoai/go-sdk"
	"github.com/hanzoai/go-sdk/option"
)

// Where the repository's build puts its binaries; another place in BITDELTA_BIN.
func binary(name string) string {
	folder := os.Getenv("BITDELTA_BIN")
	if folder == "" {
		folder = filepath.Join("..", "target", "debug")
	}
	return filepath.Join(folder, name)
}

const golden = "../tests/golden/"

// TestMain starts a node on a free port, on a tiny model, and points the environment of the examples at it.
func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	folder, err := os.MkdirTemp("", "go-sdk-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(folder)
	variant = filepath.Join(folder, "user_123.safetensors")
	made := exec.Command(binary("bitdelta"), "compress", "--base", golden+"tiny-llama", "--finetuned", golden+"tiny-llama-ft", "-o", variant)
	if output, err := made.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("making a variant (is it built? `make build`): %w\n%s", err, output))
	}
	node := exec.Command(binary("hanzo-node"), "start", "--enable-bitdelta", "--port", "0", "--threads", "1",
		"--model", golden+"tiny-llama", "--model-name", "qwen3-4b", "--variants-dir", filepath.Join(folder, "variants"))
	output, err := node.StdoutPipe()
	if err != nil {
		return fail(err)
	}
	if err := node.Start(); err != nil {
		return fail(err)
	}
	defer func() {
		_ = node.Process.Kill()
		_ = node.Wait()
	}()
	line, err := bufio.NewReader(output).ReadString('\n')
	url, listens := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !listens {
		return fail(fmt.Errorf("the node says %q: %v", line, err))
	}
	os.Setenv("HANZO_BASE_URL", url+"/v1")
	file, err := os.Open(variant)
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	if _, err := hanzoai.NewClient().Variants.Publish(context.Background(), "user_123", file); err != nil {
		return fail(err)
	}
	return m.Run()
}

// variant is the file that user_123's was published from.
var variant string

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func ask(user string) hanzoai.ChatCompletionCreateParams {
	params := hanzoai.ChatCompletionCreateParams{
		Model:     hanzoai.F("qwen3-4b"),
		Messages:  hanzoai.F([]hanzoai.ChatCompletionMessageParam{hanzoai.UserMessage("Hello!")}),
		MaxTokens: hanzoai.F(int64(12)),
	}
	if user != "" {
		params.UserID = hanzoai.F(user)
	}
	return params
}

func TestAStreamSaysTheSameAsTheWholeAnswer(t *testing.T) {
	client := hanzoai.NewClient()
	whole, err := client.Chat.Completions.Create(context.Background(), ask("user_123"))
	if err != nil {
		t.Fatal(err)
	}
	params := ask("user_123")
	params.StreamOptions = hanzoai.F(hanzoai.StreamOptions{IncludeUsage: true})
	stream := client.Chat.Completions.CreateStreaming(context.Background(), params)
	text, usage := "", (*hanzoai.Usage)(nil)
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text += choice.Delta.Content
		}
		usage = stream.Current().Usage
	}
	if stream.Err() != nil || text != whole.Choices[0].Message.Content || usage == nil || usage.CompletionTokens != whole.Usage.CompletionTokens {
		t.Fatalf("%q, %v, %v; whole: %+v", text, usage, stream.Err(), whole)
	}
}

func TestAnUnknownUserIsAnErrorOfItsOwn(t *testing.T) {
	_, err := hanzoai.NewClient().Chat.Completions.Create(context.Background(), ask("nobody"))
	var answered *hanzoai.Error
	if !errors.Is(err, hanzoai.ErrNotFound) || !errors.As(err, &answered) || answered.Code != "variant_not_found" || answered.Param != "user_id" {
		t.Fatal(err)
	}
}

func TestCancellingEndsAStream(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	params := ask("")
	params.MaxTokens = hanzoai.F(int64(400))
	params.N = hanzoai.F(int64(8))
	params.Temperature = hanzoai.F(1.0)
	stream := hanzoai.NewClient().Chat.Completions.CreateStreaming(ctx, params)
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	cancel()
	for stream.Next() {
	}
	if !errors.Is(stream.Err(), context.Canceled) {
		t.Fatal(stream.Err())
	}
}

func TestVersionsArePublishedRolledBackAndDeleted(t *testing.T) {
	ctx, client := context.Background(), hanzoai.NewClient()
	publish := func() *hanzoai.VariantVersion {
		file, err := os.Open(variant)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		version, err := client.Variants.Publish(ctx, "a user", file)
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
	if first, second := publish(), publish(); first.Version != 1 || second.Version != 2 || first.Hash != second.Hash {
		t.Fatalf("%+v, %+v", first, second)
	}
	if back, err := client.Variants.RollBack(ctx, "a user", 1); err != nil || back.Version != 3 || back.RolledBackTo != 1 {
		t.Fatalf("%+v, %v", back, err)
	}
	if got, err := client.Variants.Get(ctx, "a user"); err != nil || len(got.Versions) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := client.Variants.Delete(ctx, "a user"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Variants.Get(ctx, "a user"); !errors.Is(err, hanzoai.ErrNotFound) {
		t.Fatal(err)
	}
}

func TestAnAnswerFitsItsSchema(t *testing.T) {
	params := ask("")
	schema := map[string]any{"type": "object", "properties": map[string]any{"ok": map[string]any{"type": "boolean"}},
		"required": []string{"ok"}, "additionalProperties": false}
	params.ResponseFormat = hanzoai.F(hanzoai.JSONSchema("answer", schema))
	params.MaxTokens = hanzoai.F(int64(60))
	answer, err := hanzoai.NewClient(option.WithMaxRetries(0)).Chat.Completions.Create(context.Background(), params)
	if err != nil {
		t.Fatal(err)
	}
	text := answer.Choices[0].Message.Content
	if text != `{"ok": true}` && text != `{"ok": false}` {
		t.Fatalf("%q", text)
	}
}
