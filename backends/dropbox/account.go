package dropbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/sharing"

	"github.com/sregfs/sregfs/backends"
)

// Account returns the account holder's display name.
func (s *Store) Account(ctx context.Context) (string, error) {
	cctx, c := newCall(ctx)
	a, err := s.users.GetCurrentAccountContext(cctx)
	if err != nil {
		return "", s.fail(ctx, "ask for the account of", backends.Ref{}, c, err)
	}
	if a.Name == nil {
		return a.Email, nil
	}
	return a.Name.DisplayName, nil
}

// Usage returns the account's space; a team's member is told of the team's,
// unless the team has limited what is theirs.
func (s *Store) Usage(ctx context.Context) (backends.Usage, error) {
	cctx, c := newCall(ctx)
	u, err := s.users.GetSpaceUsageContext(cctx)
	if err != nil {
		return backends.Usage{}, s.fail(ctx, "ask for the space of", backends.Ref{}, c, err)
	}
	usage := backends.Usage{Used: int64(u.Used)}
	switch a := u.Allocation; {
	case a == nil:
	case a.Individual != nil:
		usage.Total = int64(a.Individual.Allocated)
	case a.Team != nil && a.Team.UserWithinTeamSpaceAllocated > 0:
		usage.Total = int64(a.Team.UserWithinTeamSpaceAllocated)
	case a.Team != nil:
		usage = backends.Usage{Used: int64(a.Team.Used), Total: int64(a.Team.Allocated)}
	}
	return usage, nil
}

// Share returns img's shared link, made now or before. People cannot be given
// access singly in an app's folder: with an address it fails with
// errors.ErrUnsupported.
func (s *Store) Share(ctx context.Context, img backends.Image, email string) (backends.Share, error) {
	const op = "share"
	if email != "" {
		return backends.Share{}, &backends.Error{Op: op, Client: s.client, Ref: img.Ref,
			Err:  fmt.Errorf("%w: Dropbox shares images by link only", errors.ErrUnsupported),
			Hint: "share without an address, and send the link"}
	}
	path := img.ID
	if path == "" {
		path = img.Key
	}
	cctx, c := newCall(ctx)
	link, err := s.sharing.CreateSharedLinkWithSettingsContext(cctx, sharing.NewCreateSharedLinkWithSettingsArg(path))
	if err == nil {
		return backends.Share{URL: linkURL(link)}, nil
	}
	if !hasTag(err, sharing.CreateSharedLinkWithSettingsErrorSharedLinkAlreadyExists) {
		return backends.Share{}, s.fail(ctx, op, img.Ref, c, err)
	}
	var exists sharing.CreateSharedLinkWithSettingsAPIError
	if errors.As(err, &exists) && exists.EndpointError.SharedLinkAlreadyExists != nil {
		if u := linkURL(exists.EndpointError.SharedLinkAlreadyExists.Metadata); u != "" {
			return backends.Share{URL: u}, nil
		}
	}
	arg := sharing.NewListSharedLinksArg()
	arg.Path, arg.DirectOnly = path, true
	cctx, c = newCall(ctx)
	res, err := s.sharing.ListSharedLinksContext(cctx, arg)
	if err != nil {
		return backends.Share{}, s.fail(ctx, op, img.Ref, c, err)
	}
	for _, l := range res.Links {
		if u := linkURL(l); u != "" {
			return backends.Share{URL: u}, nil
		}
	}
	return backends.Share{}, s.refused(op, img.Ref, backends.ErrUnreachable, "Dropbox says that there is a link, and does not tell it")
}

func linkURL(l sharing.IsSharedLinkMetadata) string {
	switch l := l.(type) {
	case *sharing.FileLinkMetadata:
		return l.Url
	case *sharing.FolderLinkMetadata:
		return l.Url
	}
	return ""
}

// Search asks Dropbox's own search, which finds words by their beginnings in
// the names of files and folders, and lags behind changes a little. An image is
// found by its name, its tag, and its collection; a word "id:…" finds that
// image alone, and no word finds all.
func (s *Store) Search(ctx context.Context, word string) iter.Seq2[backends.Image, error] {
	const op = "search"
	word = strings.TrimSpace(word)
	return func(yield func(backends.Image, error) bool) {
		told := make(map[string]bool)
		tell := func(m files.IsMetadata) bool {
			f, ok := m.(*files.FileMetadata)
			if !ok || !isImage(f) || told[f.PathLower] {
				return true
			}
			told[f.PathLower] = true
			img, err := s.found(ctx, op, backends.Ref{}, f)
			return yield(img, err) && err == nil
		}
		within := func(folder string) bool {
			for m, err := range s.walk(ctx, folder, op) {
				if notThere(err) {
					return true // deleted since it was found
				}
				if err != nil {
					yield(backends.Image{}, err)
					return false
				}
				if f, ok := m.(*files.FolderMetadata); ok {
					s.spelling.learn(f)
				}
				if !tell(m) {
					return false
				}
			}
			return true
		}
		switch {
		case word == "":
			within("")
			return
		case strings.HasPrefix(word, "id:"):
			img, err := s.Find(ctx, word)
			if !notThere(err) {
				yield(img, err)
			}
			return
		}
		for m, err := range s.matches(ctx, word) {
			if err != nil {
				yield(backends.Image{}, err)
				return
			}
			if f, ok := m.(*files.FolderMetadata); ok {
				s.spelling.learn(f)
				if !within(f.PathLower) {
					return
				}
			} else if !tell(m) {
				return
			}
		}
	}
}

// matches yields the files and folders that Dropbox's search finds.
func (s *Store) matches(ctx context.Context, word string) iter.Seq2[files.IsMetadata, error] {
	return func(yield func(files.IsMetadata, error) bool) {
		arg := files.NewSearchV2Arg(word)
		arg.Options = files.NewSearchOptions()
		arg.Options.FilenameOnly, arg.Options.MaxResults = true, 1000
		arg.Options.FileStatus = &files.FileStatus{Tagged: sdk.Tagged{Tag: files.FileStatusActive}}
		cctx, c := newCall(ctx)
		res, err := s.files.SearchV2Context(cctx, arg)
		for {
			if err != nil {
				yield(nil, s.fail(ctx, "search", backends.Ref{}, c, err))
				return
			}
			for _, match := range res.Matches {
				if match.Metadata != nil && match.Metadata.Metadata != nil && !yield(match.Metadata.Metadata, nil) {
					return
				}
			}
			if !res.HasMore {
				return
			}
			cctx, c = newCall(ctx)
			res, err = s.files.SearchContinueV2Context(cctx, files.NewSearchV2ContinueArg(res.Cursor))
		}
	}
}
