package hanzoai

import "encoding/json"

// Field is a parameter that may be absent, null or there.
type Field[T any] struct {
	value   T
	present bool
	null    bool
}

// F is a parameter with a value.
func F[T any](value T) Field[T] { return Field[T]{value: value, present: true} }

// Null is a parameter that is sent as null.
func Null[T any]() Field[T] { return Field[T]{present: true, null: true} }

// IsZero reports whether the parameter is left out of the body.
func (f Field[T]) IsZero() bool { return !f.present }

// MarshalJSON implements json.Marshaler.
func (f Field[T]) MarshalJSON() ([]byte, error) {
	if !f.present || f.null {
		return []byte("null"), nil
	}
	return json.Marshal(f.value)
}
