package hanzoai

import (
	"context"
	"net/http"

	"github.com/hanzoai/go-sdk/option"
)

// ModelService lists what may be asked for.
type ModelService struct{ via transport }

// Model is a name that requests may use: a base, or a user's variant of it as "base:user".
type Model struct {
	ID      string `json:"id"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// List is the base first, then the variants that the key may ask for.
func (s *ModelService) List(ctx context.Context, options ...option.RequestOption) ([]Model, error) {
	var answer struct{ Data []Model }
	if err := s.via.call(ctx, http.MethodGet, "/models", nil, &answer, options); err != nil {
		return nil, err
	}
	return answer.Data, nil
}
