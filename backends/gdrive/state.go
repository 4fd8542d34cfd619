package gdrive

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/api/drive/v3"
)

// state is what an upload is resumed from.
type state struct {
	Ref    string `json:"ref"`
	Target string `json:"target,omitempty"`
	URI    string `json:"uri"`
	Sum    []byte `json:"sum"`
	Summed int64  `json:"summed"`
}

// State is sealed with the account's credentials: the session's address in it
// is a key of its own, and worth nothing without them then.
func (u *upload) State() string {
	m, ok := u.sum.(encoding.BinaryMarshaler)
	if u.ses == nil || u.named || !ok {
		return ""
	}
	sum, err := m.MarshalBinary()
	if err != nil {
		return ""
	}
	plain, err := json.Marshal(state{u.ref.String(), u.target, u.ses.uri, sum, u.summed})
	if err != nil {
		return ""
	}
	aead, err := u.s.aead()
	if err != nil {
		return ""
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return base64.RawURLEncoding.EncodeToString(aead.Seal(nonce, nonce, plain, nil))
}

func (s *Store) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(s.seal[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func (s *Store) openState(text string) (st state, ok bool) {
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	aead, aerr := s.aead()
	if err != nil || aerr != nil || len(sealed) < aead.NonceSize() {
		return state{}, false
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	return st, err == nil && json.Unmarshal(plain, &st) == nil
}

// sweepAge is beyond the life of any session, a week.
const sweepAge = 8 * 24 * time.Hour

// sweep deletes files that an upload has left unnamed when it was interrupted
// and never resumed. It does what it can.
func (s *Store) sweep(ctx context.Context) {
	root, err := s.recentRoot(ctx)
	if err != nil {
		return
	}
	q := fmt.Sprintf("%s in parents and trashed = false and %s and modifiedTime < '%s'", quote(root),
		hasProperty(propType, typeUpload), time.Now().Add(-sweepAge).UTC().Format("2006-01-02T15:04:05"))
	var old []string
	err = s.list(ctx, q, "", func(f *drive.File) error {
		old = append(old, f.Id)
		return nil
	})
	for _, id := range old {
		if err == nil {
			err = s.svc.Files.Delete(id).Context(ctx).Do()
		}
	}
	if err != nil {
		s.log.Debug("leftovers of old uploads could not be deleted", "client", s.client, "err", lost(err))
	}
}
