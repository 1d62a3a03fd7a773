package hanzoai

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

// longestEvent is the most bytes of one event.
const longestEvent = 4 << 20

// Stream is an answer as it comes.
//
//	for stream.Next() {
//		fmt.Print(stream.Current().Choices[0].Delta.Content)
//	}
//	if err := stream.Err(); err != nil { … }
type Stream[T any] struct {
	response *http.Response
	lines    *bufio.Scanner
	current  T
	err      error
	done     bool
}

func newStream[T any](response *http.Response, err error) *Stream[T] {
	if err != nil {
		return &Stream[T]{err: err, done: true}
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 64<<10), longestEvent)
	return &Stream[T]{response: response, lines: lines}
}

// Next waits for the next event. False at the end, or when the answer breaks off, which Err tells.
func (s *Stream[T]) Next() bool {
	if s.done {
		return false
	}
	for s.lines.Scan() {
		data, is := strings.CutPrefix(s.lines.Text(), "data:")
		if !is {
			// Empty lines between events, comments that keep the connection alive.
			continue
		}
		data = strings.TrimPrefix(data, " ")
		if data == "[DONE]" {
			s.end(nil)
			return false
		}
		var failed struct{ Error *Error }
		if json.Unmarshal([]byte(data), &failed) == nil && failed.Error != nil {
			failed.Error.StatusCode = s.response.StatusCode
			s.end(failed.Error)
			return false
		}
		var event T
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			s.end(s.broken(err))
			return false
		}
		s.current = event
		return true
	}
	err := s.lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	s.end(s.broken(err))
	return false
}

// Current is the event that Next found.
func (s *Stream[T]) Current() T { return s.current }

// Err is why the stream ended, nil where it was complete.
func (s *Stream[T]) Err() error { return s.err }

// Close ends the stream early; the server stops making the answer. Not needed after Next returned false.
func (s *Stream[T]) Close() error {
	s.done = true
	if s.response == nil {
		return nil
	}
	return s.response.Body.Close()
}

func (s *Stream[T]) end(err error) {
	s.err = err
	if closing := s.Close(); s.err == nil && closing != nil {
		s.err = s.broken(closing)
	}
}

func (s *Stream[T]) broken(err error) error {
	return &ConnectionError{URL: s.response.Request.URL.String(), Err: err}
}
