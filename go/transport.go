package hanzoai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/hanzoai/go-sdk/internal/config"
	"github.com/hanzoai/go-sdk/option"
)

const (
	// firstWait is the time before the first retry, which doubles with each.
	firstWait = 500 * time.Millisecond
	// longestWait is the most of it.
	longestWait = 8 * time.Second
	// longestRetryAfter is the most that a server may make a request wait; beyond it the error is returned.
	longestRetryAfter = time.Minute
	// longestError is how much of an error's body is read.
	longestError = 1 << 20
)

// transport sends requests as a configuration says.
type transport struct {
	config config.Config
}

// send sends a request with a JSON body (none where body is nil) and returns a good response, whose body the caller closes.
func (t transport) send(ctx context.Context, method, path string, body any, options []option.RequestOption) (*http.Response, error) {
	with := t.config.With(options...)
	content, err := encode(body, with.Extra)
	if err != nil {
		return nil, fmt.Errorf("hanzoai: the parameters cannot be written as JSON: %w", err)
	}
	open := func() io.Reader { return bytes.NewReader(content) }
	if body == nil && len(with.Extra) == 0 {
		open = nil
	}
	return retry(ctx, with, method, path, "application/json", open)
}

// call sends a request and reads its answer into result.
func (t transport) call(ctx context.Context, method, path string, body, result any, options []option.RequestOption) error {
	response, err := t.send(ctx, method, path, body, options)
	if err != nil {
		return err
	}
	return read(response, result)
}

func read(response *http.Response, result any) error {
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(result); err != nil {
		return &ConnectionError{URL: response.Request.URL.String(), Err: fmt.Errorf("reading the answer: %w", err)}
	}
	return nil
}

func encode(body any, extra map[string]any) ([]byte, error) {
	content, err := json.Marshal(body)
	if err != nil || len(extra) == 0 {
		return content, err
	}
	fields := map[string]any{}
	if body != nil {
		if err := json.Unmarshal(content, &fields); err != nil {
			return nil, err
		}
	}
	for name, value := range extra {
		fields[name] = value
	}
	return json.Marshal(fields)
}

// retry sends a request until it is answered well, or will not be, or has been sent often enough.
func retry(ctx context.Context, with config.Config, method, path, content string, open func() io.Reader) (*http.Response, error) {
	url, err := with.URL(path)
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		response, err := once(ctx, with, method, url, content, open)
		if err == nil {
			return response, nil
		}
		wait, again := pause(err, attempt)
		if !again || attempt >= with.MaxRetries || ctx.Err() != nil {
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, &ConnectionError{URL: url, Err: ctx.Err()}
		case <-timer.C:
		}
	}
}

func once(ctx context.Context, with config.Config, method, url, content string, open func() io.Reader) (*http.Response, error) {
	var body io.Reader
	if open != nil {
		body = open()
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("hanzoai: %w", err)
	}
	request.Header = with.Header.Clone()
	if body != nil {
		request.Header.Set("Content-Type", content)
	}
	if with.APIKey != "" {
		request.Header.Set("Authorization", "Bearer "+with.APIKey)
	}
	response, err := with.HTTPClient.Do(request)
	if err != nil {
		// The cause alone: what the http package puts around it repeats the URL.
		return nil, &ConnectionError{URL: url, Err: cause(err)}
	}
	if response.StatusCode >= 200 && response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	return nil, failure(response)
}

func cause(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// failure is the error that a response tells of, in OpenAI's shape or any other.
func failure(response *http.Response) *Error {
	content, _ := io.ReadAll(io.LimitReader(response.Body, longestError))
	body := struct{ Error *Error }{}
	if json.Unmarshal(content, &body) != nil || body.Error == nil {
		body.Error = &Error{Message: http.StatusText(response.StatusCode)}
	}
	body.Error.StatusCode = response.StatusCode
	body.Error.RetryAfter = retryAfter(response.Header.Get("Retry-After"), time.Now())
	return body.Error
}

// retryAfter reads seconds or a date.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 && seconds < 1e6 {
		return time.Duration(seconds * float64(time.Second))
	}
	if date, err := http.ParseTime(text); err == nil && date.After(now) {
		return date.Sub(now)
	}
	return 0
}

// pause is how long to wait before another try, and whether one makes sense.
func pause(err error, attempt int) (time.Duration, bool) {
	var answered *Error
	if errors.As(err, &answered) {
		switch answered.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		default:
			return 0, false
		}
		if answered.RetryAfter > 0 {
			return answered.RetryAfter, answered.RetryAfter <= longestRetryAfter
		}
	} else if unanswered := (&ConnectionError{}); !errors.As(err, &unanswered) {
		return 0, false
	}
	wait := min(firstWait<<min(attempt, 10), longestWait)
	// Up to a quarter less, so that clients that failed together do not come back together.
	return wait - rand.N(wait/4), true
}
