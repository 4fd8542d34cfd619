package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sregfs/sregfs/backends"
)

// pageSize is how many names are asked for at once.
const pageSize = 1000

// maxPage is how long one page of names may be, in bytes.
const maxPage = 4 << 20

// Stat asks what ref's tag names now, or, with a version, for the manifest of
// that digest. A version that is no digest must be the checksum of what the tag
// names.
func (s *Store) Stat(ctx context.Context, ref backends.Ref) (backends.Image, error) {
	const op = "stat"
	if err := ctx.Err(); err != nil {
		return backends.Image{}, s.fail(ctx, op, ref, err)
	}
	if !valid(ref) {
		return backends.Image{}, backends.NotExist(op, s.client, ref) // nor can there be
	}
	repository := repositoryOf(ref.Collection, ref.Name)
	if ref.Version == "" {
		f, err := s.resolve(ctx, repository, ref.Tag)
		if err != nil {
			return backends.Image{}, s.fail(ctx, op, ref, err)
		}
		return s.image(ref, f), nil
	}
	digest := ref.Version
	if len(digest) == 64 {
		digest = "sha256:" + digest
	}
	if digestName.MatchString(digest) {
		f, err := s.resolve(ctx, repository, digest)
		if err == nil {
			return s.image(ref, f), nil
		} else if !errors.Is(err, iofs.ErrNotExist) {
			return backends.Image{}, s.fail(ctx, op, ref, err)
		}
	}
	f, err := s.resolve(ctx, repository, ref.Tag)
	if err != nil {
		return backends.Image{}, s.fail(ctx, op, ref, err)
	}
	if f.sif == nil || f.sif.Digest.String() != digest {
		return backends.Image{}, backends.NotExist(op, s.client, ref)
	}
	return s.image(ref, f), nil
}

// image is what there is to say of the manifest f under the name ref.
func (s *Store) image(ref backends.Ref, f *facts) backends.Image {
	repository := repositoryOf(ref.Collection, ref.Name)
	at := s.base + "/v2/" + repository + "/manifests"
	img := backends.Image{
		Ref:      ref,
		Key:      repository + ":" + ref.Tag,
		Revision: f.digest,
		Version:  f.digest,
		Created:  f.created,
		URL:      at + "/" + ref.Tag,
		Labels:   f.labels,
		Remote:   f.remote(at, ref.Tag),
	}
	if ref.Version != "" {
		img.URL = at + "/" + f.digest
	}
	if f.sif == nil {
		img.Layered, img.Size = true, f.estimate()
		return img
	}
	img.Size = f.sif.Size
	if f.sif.Digest.Algorithm == backends.SHA256 {
		img.Sum = backends.Checksum{Algorithm: backends.SHA256, Hex: f.sif.Digest.Hex}
	}
	return img
}

// remote is what the Python client records: the manifest under the number of
// its schema, and where it is.
func (f *facts) remote(at, tag string) json.RawMessage {
	number := "2"
	if f.old {
		number = "1"
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(f.raw, &m) != nil || m == nil {
		return nil
	}
	self, _ := json.Marshal(at + "/" + tag)
	m["selfLink"] = self
	if f.mediaType != "" && m["mediaType"] == nil {
		m["mediaType"], _ = json.Marshal(f.mediaType)
	}
	b, err := json.Marshal(map[string]any{number: m, "selfLink": at})
	if err != nil {
		return nil
	}
	return b
}

// expansion is by how much archives grow when they are unpacked: a gzipped
// Debian /usr 2.9 times, files that are compressed already not at all.
const expansion = 2.5

// estimate is what the image of a container's layers may come to in bytes.
func (f *facts) estimate() int64 {
	const frame = 64 << 10 // what surrounds the layers' files
	total := int64(frame)
	for _, l := range f.manifest.Layers {
		size := l.Size
		if s, ok := uncompressed(l.Annotations); ok {
			size = s
		} else if !strings.HasSuffix(string(l.MediaType), ".tar") {
			size = int64(float64(size) * expansion)
		}
		total += min(size, 1<<50)
	}
	return total
}

// uncompressed is the size that eStargz builders write down.
func uncompressed(annotations map[string]string) (int64, bool) {
	var n int64
	_, err := fmt.Sscan(annotations["io.containers.estargz.uncompressed-size"], &n)
	return n, err == nil && n >= 0
}

// Tags asks for the tags of a repository.
func (s *Store) Tags(ctx context.Context, collection, name string) ([]string, error) {
	const op = "list the tags of"
	ref := backends.Ref{Collection: collection, Name: name, Tag: backends.DefaultTag}
	repository := repositoryOf(collection, name)
	if !validRepository(repository) {
		return nil, backends.NotExist(op, s.client, ref)
	}
	tags := []string{}
	for page, err := range s.names(ctx, session{repository, pull}, repository+"/tags/list", "") {
		if err != nil {
			return nil, s.fail(ctx, op, ref, err)
		}
		for _, t := range page {
			if tagName.MatchString(t) {
				tags = append(tags, t)
			}
		}
	}
	return tags, nil
}

// nextPage is the form of a Link header to a further page (RFC 8288).
var nextPage = regexp.MustCompile(`<([^>]+)>\s*;[^,]*\brel="?next"?`)

// names yields the pages of a list of names; where last is not empty, small ones
// of what comes after it, if the registry heeds that.
func (s *Store) names(ctx context.Context, n session, path, last string) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		all, size := s.base+"/v2/"+path+"?", pageSize
		if last != "" {
			all, size = all+"last="+url.QueryEscape(last)+"&", nextFew
		}
		at := fmt.Sprintf("%sn=%d", all, size)
		for seen := map[string]bool{}; !seen[at]; {
			seen[at] = true
			resp, body, err := s.get(ctx, call{session: n, method: http.MethodGet, url: at}, maxPage)
			if statusOf(err) == http.StatusBadRequest && len(seen) == 1 {
				// It gives fewer at once; how many is then its own choice.
				at = all[:len(all)-1]
				resp, body, err = s.get(ctx, call{session: n, method: http.MethodGet, url: at}, maxPage)
			}
			var page struct {
				Repositories []string `json:"repositories"`
				Tags         []string `json:"tags"`
			}
			if err == nil && json.Unmarshal(body, &page) != nil {
				err = fmt.Errorf("%w: its list of names is no JSON object", backends.ErrUnreachable)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(append(page.Repositories, page.Tags...), nil) {
				return
			}
			// A proxy may have added a header of its own before the registry's.
			link := nextPage.FindStringSubmatch(strings.Join(resp.Header.Values("Link"), ", "))
			if link == nil {
				return
			}
			here, err := url.Parse(at)
			if err == nil {
				here, err = here.Parse(link[1])
			}
			if err != nil || here.Host != s.registry.Name() {
				yield(nil, fmt.Errorf("%w: its list goes on elsewhere", backends.ErrUnreachable))
				return
			}
			here.Scheme = strings.SplitN(s.base, ":", 2)[0]
			at = here.String()
		}
	}
}

// found is one step of a listing.
type found struct {
	img backends.Image
	// collection holds something that is not listed, but can be asked for.
	collection string
	err        error
}

// List yields the images of all repositories in the registry's catalogue. It
// costs a request for each repository and one for each tag, and three more for
// an image that was not seen before. What is no image is left out, and so is
// what this account may not see.
func (s *Store) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	const op = "list"
	return func(yield func(backends.Entry, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(backends.Entry{}, s.fail(ctx, op, backends.Ref{}, err))
			return
		}
		if s.unlisted {
			yield(backends.Entry{}, s.noCatalogue())
			return
		}
		work, cancel := context.WithCancel(ctx)
		results := make(chan found)
		var workers sync.WaitGroup
		defer workers.Wait()
		defer cancel()
		workers.Go(func() {
			defer close(results)
			s.list(work, results)
		})
		collections := map[string]bool{}
		for r := range results {
			if r.err != nil {
				yield(backends.Entry{}, s.fail(ctx, op, r.img.Ref, r.err))
				return
			}
			if c := r.collection; c != "" {
				if !collections[c] && !yield(backends.Entry{Collection: c}, nil) {
					return
				}
				collections[c] = true
				continue
			}
			if !yield(backends.Entry{Image: r.img}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(backends.Entry{}, s.fail(ctx, op, backends.Ref{}, err))
		}
	}
}

// list sends all images to results, or an error, and returns when nobody of it
// runs any more.
func (s *Store) list(ctx context.Context, results chan<- found) {
	send := func(f found) {
		select {
		case results <- f:
		case <-ctx.Done():
		}
	}
	repositories, tags := make(chan string), make(chan backends.Ref)
	var refused atomic.Bool // a repository, as one that is not for this account
	hidden := func(err error) bool {
		if errors.Is(err, backends.ErrAuth) {
			refused.Store(true)
		}
		return s.hidden(err)
	}
	var listers, askers sync.WaitGroup
	for range s.parallel {
		listers.Go(func() {
			for repository := range repositories {
				ref := refOf(repository, "")
				list, err := s.Tags(ctx, ref.Collection, ref.Name)
				switch {
				case err != nil && !hidden(err):
					send(found{img: backends.Image{Ref: ref}, err: err})
				case errors.Is(err, iofs.ErrNotExist):
				case err != nil && ref.Collection != "":
					// Who asks for it by name is told that it is refused, not that
					// it does not exist.
					send(found{collection: ref.Collection})
				}
				for _, ref.Tag = range list {
					select {
					case tags <- ref:
					case <-ctx.Done():
					}
				}
			}
		})
		askers.Go(func() {
			for ref := range tags {
				f, err := s.resolve(ctx, repositoryOf(ref.Collection, ref.Name), ref.Tag)
				switch {
				case err == nil:
					send(found{img: s.image(ref, f)})
				case errors.Is(err, errors.ErrUnsupported), errors.Is(err, backends.ErrCorrupt):
					// One image that is beyond this program hides no others.
					s.log.Debug("left out of the listing", "image", ref.String(), "error", err)
					if ref.Collection != "" {
						send(found{collection: ref.Collection})
					}
				case !hidden(err):
					send(found{img: backends.Image{Ref: ref}, err: err})
				case !errors.Is(err, iofs.ErrNotExist) && ref.Collection != "":
					send(found{collection: ref.Collection})
				}
			}
		})
	}
	for page, err := range s.names(ctx, session{"", catalogue}, "_catalog", "") {
		if err != nil {
			send(found{err: s.catalogueError(ctx, err)})
			break
		}
		for _, repository := range page {
			if !validRepository(repository) {
				continue
			}
			select {
			case repositories <- repository:
			case <-ctx.Done():
			}
		}
	}
	close(repositories)
	listers.Wait()
	close(tags)
	askers.Wait()
	if refused.Load() && s.creds.any() {
		if err := s.signInAgain(ctx); err != nil {
			send(found{err: err})
		}
	}
}

// signInAgain asks whether the registry still takes this account's credentials.
// When they are revoked in the middle of a listing, all that is left of it is
// refused like what is not for this account.
func (s *Store) signInAgain(ctx context.Context) error {
	again := session{"", catalogue} // as the listing began
	s.mu.Lock()
	delete(s.sessions, again)
	s.mu.Unlock()
	resp, err := s.do(ctx, call{session: again, method: http.MethodGet, url: s.base + "/v2/"}, http.StatusOK)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// nextFew is how many repositories of a collection are looked at for one with
// anything in it.
const nextFew = 10

// FindCollection asks the catalogue for what comes after "NAME/". That registries
// sort their catalogue and begin after any name is not written anywhere, so a no
// is left to a listing.
func (s *Store) FindCollection(ctx context.Context, name string) (string, error) {
	const op = "find the collection"
	ref := backends.Ref{Collection: name}
	switch {
	case !validRepository(name):
		return "", backends.NotExist(op, s.client, ref)
	case s.unlisted:
		return "", s.noCatalogue()
	}
	for page, err := range s.names(ctx, session{"", catalogue}, "_catalog", name+"/") {
		if err != nil {
			return "", s.fail(ctx, op, ref, s.catalogueError(ctx, err))
		}
		for _, repository := range page[:min(len(page), nextFew)] {
			ref := refOf(repository, "")
			if !validRepository(repository) || !strings.HasPrefix(repository, name+"/") {
				continue
			}
			// A repository stays in the catalogue when its last tag is deleted.
			tags, err := s.Tags(ctx, ref.Collection, ref.Name)
			if len(tags) > 0 || err != nil && s.hidden(err) && !errors.Is(err, iofs.ErrNotExist) {
				return name, nil
			} else if err != nil && !s.hidden(err) {
				return "", err
			}
		}
		break
	}
	return "", &backends.Error{Op: op, Client: s.client, Ref: ref, Err: errors.ErrUnsupported}
}

// hidden reports whether a failure to look at what the catalogue names means
// that it is not for this account, is no image, or has just gone.
func (s *Store) hidden(err error) bool {
	return errors.Is(err, iofs.ErrNotExist) || errors.Is(err, iofs.ErrPermission) || errors.Is(err, backends.ErrAuth)
}

// catalogueError tells a registry that gives no catalogue from one that knows
// no such user.
func (s *Store) catalogueError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, backends.ErrAuth), errors.Is(err, iofs.ErrPermission):
		// A sign-in for nothing in particular shows whose fault it is.
		resp, plain := s.do(ctx, call{session: session{"", pull}, method: http.MethodGet, url: s.base + "/v2/"}, http.StatusOK)
		if plain == nil {
			resp.Body.Close()
			return s.noCatalogue()
		}
		return plain
	case errors.Is(err, iofs.ErrNotExist), errors.Is(err, errors.ErrUnsupported):
		return s.noCatalogue()
	}
	return err
}

func (s *Store) noCatalogue() error {
	return &backends.Error{Op: "list", Client: s.client, Err: fmt.Errorf("the registry gives no catalogue: %w", errors.ErrUnsupported)}
}
