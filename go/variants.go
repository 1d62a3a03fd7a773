package hanzoai

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/hanzoai/go-sdk/option"
)

// VariantService publishes, rolls back, deletes and trains users' variants. The key must have the right to.
type VariantService struct{ via transport }

// Variant is a user's variant.
type Variant struct {
	UserID        string           `json:"user_id"`
	Loaded        bool             `json:"loaded"`
	ResidentBytes int64            `json:"resident_bytes"`
	Hash          string           `json:"hash"`
	Versions      []VariantVersion `json:"versions"`
}

// VariantVersion is one version of a variant; the highest is served.
type VariantVersion struct {
	Version      int64  `json:"version"`
	Hash         string `json:"hash"`
	Bytes        int64  `json:"bytes"`
	Created      int64  `json:"created"`
	RolledBackTo int64  `json:"rolled_back_to"`
}

// Training is where a training stands.
type Training struct {
	UserID string `json:"user_id"`
	Status string `json:"status"`
	Phase  string `json:"phase"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
	Note   string `json:"note"`
	// Messages are what is to be read: warnings, losses.
	Messages []string `json:"messages"`
	Error    string   `json:"error"`
	Version  int64    `json:"version"`
}

// TrainParams says what a variant is trained on, and how.
type TrainParams struct {
	// Data are conversations, as in map[string]any{"prompt": "…", "response": "…"}.
	Data []map[string]any `json:"data"`
	// EvalData are held-out ones.
	EvalData []map[string]any `json:"eval_data,omitempty"`
	// Settings by their LLaMA-Factory names, as in "num_train_epochs".
	Settings map[string]any `json:"settings,omitempty"`
}

func at(user, below string) string { return "/variants/" + url.PathEscape(user) + below }

// List is every variant that the key may change.
func (s *VariantService) List(ctx context.Context, options ...option.RequestOption) ([]Variant, error) {
	var answer struct{ Data []Variant }
	if err := s.via.call(ctx, http.MethodGet, "/variants", nil, &answer, options); err != nil {
		return nil, err
	}
	return answer.Data, nil
}

// Get is one variant with its versions.
func (s *VariantService) Get(ctx context.Context, user string, options ...option.RequestOption) (*Variant, error) {
	return one[Variant](ctx, s.via, http.MethodGet, at(user, ""), nil, options)
}

// Publish makes a variant file the user's newest version. The file is sent again from its beginning where a try fails, so
// it must be one that can seek.
func (s *VariantService) Publish(ctx context.Context, user string, file io.ReadSeeker, options ...option.RequestOption) (*VariantVersion, error) {
	var failed error
	open := func() io.Reader {
		_, failed = file.Seek(0, io.SeekStart)
		// Not closed by the http package, which would end a second try.
		return struct{ io.Reader }{file}
	}
	with := s.via.config.With(options...)
	response, err := retry(ctx, with, http.MethodPut, at(user, ""), "application/octet-stream", open)
	if failed != nil {
		return nil, fmt.Errorf("hanzoai: the variant cannot be read again from its beginning: %w", failed)
	}
	if err != nil {
		return nil, err
	}
	var version VariantVersion
	if err := read(response, &version); err != nil {
		return nil, err
	}
	return &version, nil
}

// RollBack makes an older version the newest; 0 is the one before the newest.
func (s *VariantService) RollBack(ctx context.Context, user string, version int64, options ...option.RequestOption) (*VariantVersion, error) {
	body := map[string]any{}
	if version != 0 {
		body["version"] = version
	}
	return one[VariantVersion](ctx, s.via, http.MethodPost, at(user, "/rollback"), body, options)
}

// Delete erases every version of a user's variant.
func (s *VariantService) Delete(ctx context.Context, user string, options ...option.RequestOption) error {
	_, err := one[struct{}](ctx, s.via, http.MethodDelete, at(user, ""), nil, options)
	return err
}

// Train begins a training, whose variant is published when it ends.
func (s *VariantService) Train(ctx context.Context, user string, params TrainParams, options ...option.RequestOption) (*Training, error) {
	return one[Training](ctx, s.via, http.MethodPost, at(user, "/train"), params, options)
}

// Training is the training that runs, or the last one.
func (s *VariantService) Training(ctx context.Context, user string, options ...option.RequestOption) (*Training, error) {
	return one[Training](ctx, s.via, http.MethodGet, at(user, "/train"), nil, options)
}

// FollowTraining gives a training at each of its changes until it is over.
func (s *VariantService) FollowTraining(ctx context.Context, user string, options ...option.RequestOption) *Stream[Training] {
	return newStream[Training](s.via.send(ctx, http.MethodGet, at(user, "/train/events"), nil, options))
}

// CancelTraining calls a training back.
func (s *VariantService) CancelTraining(ctx context.Context, user string, options ...option.RequestOption) (*Training, error) {
	return one[Training](ctx, s.via, http.MethodDelete, at(user, "/train"), nil, options)
}

func one[T any](ctx context.Context, via transport, method, path string, body any, options []option.RequestOption) (*T, error) {
	var answer T
	if err := via.call(ctx, method, path, body, &answer, options); err != nil {
		return nil, err
	}
	return &answer, nil
}
