package hanzoai

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanzoai/go-sdk/option"
)

// answering is a client of a server that answers attempt n (from 1) as told.
func answering(t *testing.T, answer func(attempt int32, w http.ResponseWriter, r *http.Request), options ...option.RequestOption) (*Client, *atomic.Int32) {
	t.Helper()
	var attempts atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(attempts.Add(1), w, r)
	}))
	t.Cleanup(server.Close)
	return NewClient(append([]option.RequestOption{option.WithBaseURL(server.URL + "/v1")}, options...)...), &attempts
}

func hello() ChatCompletionCreateParams {
	return ChatCompletionCreateParams{
		Model:    F("m"),
		Messages: F([]ChatCompletionMessageParam{UserMessage("Hello!")}),
	}
}

const good = `{"id": "1", "choices": [{"message": {"role": "assistant", "content": "Hi"}}]}`

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Retry-After", "0.001")
	w.WriteHeader(status)
	io.WriteString(w, `{"error": {"message": "no", "type": "t", "param": null, "code": "`+code+`"}}`)
}

func TestWhatMayPassIsTriedAgainAndThenAnswered(t *testing.T) {
	client, attempts := answering(t, func(attempt int32, w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), "Hello!") {
			t.Errorf("attempt %d sent %q", attempt, body)
		}
		if attempt < 3 {
			refuse(w, http.StatusTooManyRequests, "queue_full")
			return
		}
		io.WriteString(w, good)
	})
	answer, err := client.Chat.Completions.Create(context.Background(), hello())
	if err != nil || answer.Choices[0].Message.Content != "Hi" || attempts.Load() != 3 {
		t.Fatalf("%v, %v after %d attempts", answer, err, attempts.Load())
	}
}

func TestRetriesEndAndErrorsAreTyped(t *testing.T) {
	for status, kind := range map[int]error{400: ErrInvalidRequest, 401: ErrAuthentication, 403: ErrPermission, 404: ErrNotFound, 422: ErrInvalidRequest, 429: ErrRateLimit, 503: ErrServer} {
		client, attempts := answering(t, func(_ int32, w http.ResponseWriter, _ *http.Request) {
			refuse(w, status, "a_code")
		}, option.WithMaxRetries(1))
		_, err := client.Chat.Completions.Create(context.Background(), hello())
		var answered *Error
		if !errors.As(err, &answered) || answered.StatusCode != status || answered.Code != "a_code" || !errors.Is(err, kind) {
			t.Errorf("%d: %v", status, err)
		}
		expected := int32(1)
		if status == 429 || status == 503 {
			expected = 2
		}
		if attempts.Load() != expected {
			t.Errorf("%d: %d attempts", status, attempts.Load())
		}
	}
}

func TestAServerThatIsNotThereIsAConnectionError(t *testing.T) {
	client := NewClient(option.WithBaseURL("http://127.0.0.1:1/v1"), option.WithMaxRetries(0))
	_, err := client.Models.List(context.Background())
	var unanswered *ConnectionError
	if !errors.As(err, &unanswered) {
		t.Fatal(err)
	}
}

func TestCancellingEndsAWaitForTheNextTry(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	client, attempts := answering(t, func(_ int32, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "50")
		w.WriteHeader(http.StatusServiceUnavailable)
		cancel()
	})
	if _, err := client.Chat.Completions.Create(ctx, hello()); err == nil || attempts.Load() != 1 {
		t.Fatalf("%v after %d attempts", err, attempts.Load())
	}
}

func TestWaitsGrowAndTheServersWordCounts(t *testing.T) {
	for attempt, expected := range map[int]time.Duration{0: firstWait, 1: 2 * firstWait, 9: longestWait} {
		wait, again := pause(&ConnectionError{}, attempt)
		if !again || wait > expected || wait < expected*3/4 {
			t.Errorf("attempt %d waits %v", attempt, wait)
		}
	}
	if wait, again := pause(&Error{StatusCode: 429, RetryAfter: 7 * time.Second}, 0); !again || wait != 7*time.Second {
		t.Errorf("%v, %v", wait, again)
	}
	if _, again := pause(&Error{StatusCode: 429, RetryAfter: time.Hour}, 0); again {
		t.Error("an hour is not waited for")
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, expected := range map[string]time.Duration{"3": 3 * time.Second, now.Add(time.Minute).Format(http.TimeFormat): time.Minute, "soon": 0, "-1": 0, "": 0} {
		if got := retryAfter(text, now); got != expected {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestOnlyWhatIsSetIsSent(t *testing.T) {
	client, _ := answering(t, func(_ int32, w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer k" || r.Header.Get("X-Extra") != "1" || r.URL.Path != "/v1/chat/completions" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if stop, there := body["stop"]; !there || stop != nil || len(body) != 4 || body["beam"] != 3.0 {
			t.Errorf("%v", body)
		}
		io.WriteString(w, good)
	}, option.WithAPIKey("k"), option.WithHeader("X-Extra", "1"))
	params := hello()
	params.Stop = Null[[]string]()
	if _, err := client.Chat.Completions.Create(context.Background(), params, option.WithJSONSet("beam", 3)); err != nil {
		t.Fatal(err)
	}
}

func TestAStreamEndsWithDoneOrSaysWhyNot(t *testing.T) {
	chunk := `data: {"choices": [{"delta": {"content": "a"}}]}` + "\n\n"
	for end, complete := range map[string]bool{
		"data: [DONE]\n\n": true,
		"":                 false,
		"data: {\n\n":      false,
		`data: {"error": {"message": "full", "type": "server_error", "code": "x"}}` + "\n\n": false,
	} {
		client, _ := answering(t, func(_ int32, w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, ": a comment\n\n"+chunk+chunk+end)
		})
		stream := client.Chat.Completions.CreateStreaming(context.Background(), hello())
		text := ""
		for stream.Next() {
			text += stream.Current().Choices[0].Delta.Content
		}
		if text != "aa" || (stream.Err() == nil) != complete || stream.Next() {
			t.Errorf("%q: %q, %v", end, text, stream.Err())
		}
	}
}

func TestOptionsThatCannotBeAreReportedByTheFirstRequest(t *testing.T) {
	t.Setenv("HANZO_API_KEY", "")
	t.Setenv("HANZO_BASE_URL", "")
	for name, options := range map[string][]option.RequestOption{
		"inference mode": {option.WithInferenceMode("edge")},
		"retries":        {option.WithMaxRetries(-1)},
		"base URL":       {option.WithBaseURL("localhost:8080")},
		"key":            {option.WithInferenceMode("cloud")},
	} {
		_, err := NewClient(options...).Models.List(context.Background())
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
