package hanzoai

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kinds of errors, for errors.Is.
var (
	// ErrInvalidRequest is a request that will never do: 400, 413, 422.
	ErrInvalidRequest = errors.New("invalid request")
	// ErrAuthentication is a key that is missing or not valid: 401.
	ErrAuthentication = errors.New("not authenticated")
	// ErrPermission is a key that may not do this or ask for this user: 403.
	ErrPermission = errors.New("not permitted")
	// ErrNotFound is a model or variant that is not there: 404.
	ErrNotFound = errors.New("not found")
	// ErrRateLimit is a limit that is reached or a full queue: 429.
	ErrRateLimit = errors.New("rate limited")
	// ErrServer is a failure of the server: 5xx.
	ErrServer = errors.New("server error")
)

// Error is what a server answers instead of a result.
type Error struct {
	// StatusCode is the HTTP status; 200 for an error inside a stream that had begun.
	StatusCode int `json:"-"`
	// Message is for people.
	Message string `json:"message"`
	// Type is as in "invalid_request_error".
	Type string `json:"type"`
	// Param is the field at fault, if one is.
	Param string `json:"param"`
	// Code is for programs, as in "variant_not_found".
	Code string `json:"code"`
	// RetryAfter is when another try makes sense; 0 where the server does not say.
	RetryAfter time.Duration `json:"-"`
}

// Error implements error.
func (e *Error) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("hanzoai: %d: %s", e.StatusCode, e.Message)
	}
	return fmt.Sprintf("hanzoai: %d %s: %s", e.StatusCode, e.Code, e.Message)
}

// Is reports whether the error is of a kind, as in errors.Is(err, hanzoai.ErrNotFound).
func (e *Error) Is(kind error) bool {
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return kind == ErrInvalidRequest
	case http.StatusUnauthorized:
		return kind == ErrAuthentication
	case http.StatusForbidden:
		return kind == ErrPermission
	case http.StatusNotFound:
		return kind == ErrNotFound
	case http.StatusTooManyRequests:
		return kind == ErrRateLimit
	}
	return kind == ErrServer && (e.StatusCode >= 500 || e.Type == "server_error")
}

// ConnectionError is a request that got no answer. It unwraps to its cause, context.Canceled for one.
type ConnectionError struct {
	// URL is what was asked.
	URL string
	// Err is the cause.
	Err error
}

// Error implements error.
func (e *ConnectionError) Error() string {
	return fmt.Sprintf("hanzoai: no answer from %s: %v", e.URL, e.Err)
}

// Unwrap is the cause.
func (e *ConnectionError) Unwrap() error { return e.Err }
