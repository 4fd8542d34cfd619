// Package login gets OAuth 2.0 tokens from a user and keeps them fresh: the
// authorization code grant (RFC 6749 section 4.1) with PKCE (RFC 7636, S256)
// and a loopback redirect (RFC 8252 section 7.3), for clients whose service
// has it.
//
// It knows no service: end points, scopes and peculiar parameters come from
// the caller. Start at Run, which logs in, and TokenSource, which uses what
// Save has stored.
package login

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/sregfs/sregfs/backends"
)

// Options say how a login goes.
type Options struct {
	// Client is the client's name, for messages and hints ("dropbox").
	Client string
	// Service is what the user calls the service ("Dropbox").
	Service string
	// Terminal is where the user is told what to do. Without its OpenURL, the
	// user opens the page somewhere else and enters on In what comes of it.
	Terminal backends.Terminal
	// ExtraParams are added to the authorization request
	// ("token_access_type": "offline").
	ExtraParams map[string]string
	// Ports are the ports of the redirect URIs that are registered with the
	// service; the first that is free is used. Empty for any free port, which
	// RFC 8252 section 7.3 bids services allow.
	Ports []int
	// Host is the redirect URI's host, "127.0.0.1" when it is empty. It is
	// "localhost" for services that have such a URI registered.
	Host string
	// Path is the redirect URI's path, "/" when it is empty.
	Path string
	// CodeOnPage says that the service shows the user a code when the request
	// has no redirect URI, which is used where there is no browser here.
	CodeOnPage bool
	// HTTPClient exchanges the code; nil for http.DefaultClient.
	HTTPClient *http.Client
}

// answer is what the service sent the user back with.
type answer struct {
	code string
	err  error
}

// Run logs the user in and returns the token, which it does not store. It ends
// with ctx, with an error that wraps backends.ErrAuth when the user or the
// service refuses, and with backends.ErrUnreachable when the service cannot be
// asked. cfg's RedirectURL is replaced.
//
// Where the user enters a code, a line is read from Terminal.In; a Read that
// is under way when ctx ends is left behind, since nothing can interrupt it.
func Run(ctx context.Context, cfg oauth2.Config, o Options) (*oauth2.Token, error) {
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Path == "" {
		o.Path = "/"
	}
	tok, err := run(ctx, cfg, o)
	if err != nil {
		var already *backends.Error
		if errors.As(err, &already) {
			return nil, err
		}
		return nil, &backends.Error{Op: "log in", Client: o.Client, Err: err, Hint: hint(o.Client)}
	}
	return tok, nil
}

func hint(client string) string { return fmt.Sprintf("run %q", "sregfs login "+client) }

func run(ctx context.Context, cfg oauth2.Config, o Options) (*oauth2.Token, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	state, verifier := rand.Text(), oauth2.GenerateVerifier()
	answers := make(chan answer, 1)
	typed := o.Terminal.OpenURL == nil

	cfg.RedirectURL = ""
	if !typed || !o.CodeOnPage {
		redirect, stop, err := listen(o, state, answers)
		if err != nil {
			return nil, err
		}
		defer stop()
		cfg.RedirectURL = redirect
	}
	params := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(verifier)}
	for k, v := range o.ExtraParams {
		params = append(params, oauth2.SetAuthURLParam(k, v))
	}
	page := cfg.AuthCodeURL(state, params...)

	if !typed {
		fmt.Fprintf(o.Terminal.Out, "Your browser opens %s's page. If it does not, open it yourself:\n\n    %s\n\n", o.Service, page)
		if err := o.Terminal.OpenURL(page); err != nil {
			fmt.Fprintf(o.Terminal.Out, "No browser could be started: %v.\n", err)
			typed = true
		}
	} else {
		fmt.Fprintf(o.Terminal.Out, "Open this page in a browser, here or on another machine:\n\n    %s\n\n", page)
	}
	if typed {
		if cfg.RedirectURL == "" {
			fmt.Fprint(o.Terminal.Out, "Then enter the code that it shows: ")
		} else {
			fmt.Fprint(o.Terminal.Out, "If the browser is on another machine, it ends at an address that it cannot open.\nEnter that whole address here: ")
		}
		go readAnswer(ctx, o.Terminal, state, cfg.RedirectURL != "", answers)
	} else {
		fmt.Fprintln(o.Terminal.Out, "Waiting for your answer there (Ctrl-C gives up).")
	}

	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer came from %s's page: %w", o.Service, ctx.Err())
	}
	if a.err != nil {
		return nil, a.err
	}
	if o.HTTPClient != nil {
		ctx = context.WithValue(ctx, oauth2.HTTPClient, o.HTTPClient)
	}
	tok, err := cfg.Exchange(ctx, a.code, oauth2.VerifierOption(verifier))
	if err != nil {
		return nil, failure(ctx, "exchange the code", o.Client, err)
	}
	return tok, nil
}

// parseAnswer reads the parameters of a redirect (RFC 6749 section 4.1.2). ok
// is false when they are not the answer to the request with that state.
func parseAnswer(q url.Values, state string) (a answer, ok bool) {
	if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
		return answer{}, false
	}
	if e := q.Get("error"); e != "" {
		if d := q.Get("error_description"); d != "" {
			e += ": " + d
		}
		return answer{err: fmt.Errorf("%w: the service answered %q", backends.ErrAuth, e)}, true
	}
	code := q.Get("code")
	return answer{code: code}, code != ""
}

// readAnswer reads lines until one is a code or the address of a redirect.
func readAnswer(ctx context.Context, term backends.Terminal, state string, redirected bool, answers chan<- answer) {
	lines := bufio.NewScanner(term.In)
	for lines.Scan() && ctx.Err() == nil {
		a, why := parseLine(lines.Text(), state, redirected)
		if why == "" {
			send(answers, a)
			return
		}
		fmt.Fprintf(term.Out, "%s. Try again: ", why)
	}
	if ctx.Err() != nil {
		return
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	send(answers, answer{err: fmt.Errorf("%w: no code was entered: %w", backends.ErrAuth, err)})
}

// parseLine takes what the user entered for the address of a redirect or for a
// bare code. A bare code carries no state; that it belongs to this login is
// then what PKCE proves.
func parseLine(line, state string, redirected bool) (a answer, why string) {
	line = strings.Trim(strings.TrimSpace(line), `"'<>`)
	if line == "" {
		return a, "That line was empty"
	}
	if u, err := url.Parse(line); err == nil && u.RawQuery != "" {
		a, ok := parseAnswer(u.Query(), state)
		if !ok {
			return a, "That address is not this login's answer"
		}
		return a, ""
	}
	if strings.Contains(line, "://") || strings.ContainsAny(line, " \t") {
		return a, "There is no code in that"
	}
	if redirected {
		// A code copied out of an address is still encoded ("4%2F0AX…").
		if c, err := url.QueryUnescape(line); err == nil && strings.Contains(line, "%") {
			line = c
		}
	}
	return answer{code: line}, ""
}

// send delivers the first answer; later ones find the channel full.
func send(answers chan<- answer, a answer) {
	select {
	case answers <- a:
	default:
	}
}

// listen serves the redirect URI, which it returns.
func listen(o Options, state string, answers chan<- answer) (redirect string, stop func(), err error) {
	ports := o.Ports
	if len(ports) == 0 {
		ports = []int{0}
	}
	var l net.Listener
	for _, p := range ports {
		// Loopback alone, also for "localhost": nobody else may answer.
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p))); err == nil {
			break
		}
	}
	if err != nil {
		return "", nil, &backends.Error{Op: "log in", Client: o.Client,
			Err:  fmt.Errorf("listen for the browser's answer: %w", err),
			Hint: "close what uses that port, or log in with --no-browser"}
	}
	host := net.JoinHostPort(o.Host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	srv := &http.Server{Handler: handler(o, host, state, answers), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	stop = func() {
		// The page has to reach the browser; connections that it opened ahead
		// and does not use are not waited for.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		<-done
	}
	return "http://" + host + o.Path, stop, nil
}

// handler answers the browser. Only a request to this very address with the
// right state is taken; any other leaves the login waiting, so that no other
// page can disturb it.
func handler(o Options, host, state string, answers chan<- answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		h.Set("Referrer-Policy", "no-referrer") // the address holds the code
		h.Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet || r.URL.Path != o.Path || r.Host != host {
			w.WriteHeader(http.StatusNotFound)
			writePage(w, "There is nothing here.")
			return
		}
		a, ok := parseAnswer(r.URL.Query(), state)
		switch {
		case !ok:
			w.WriteHeader(http.StatusBadRequest)
			writePage(w, "This is not the answer to the login that is under way. Open the page that the terminal shows.")
		case a.err != nil:
			send(answers, a)
			writePage(w, "The login was refused. You may close this page; the terminal says more.")
		default:
			send(answers, a)
			writePage(w, "sregfs has received the answer. You may close this page.")
		}
	})
}

// writePage writes text, one of the constants above.
func writePage(w io.Writer, text string) {
	fmt.Fprintf(w, "<!doctype html><html lang=en><title>sregfs</title>"+
		"<style>body{font:1.2em sans-serif;margin:4em auto;max-width:30em}</style><p>%s</p></html>\n", text)
}

// failure turns what the token end point answered into a kind. Of its body only
// the error's code (RFC 6749 section 5.2) is told: the rest may hold a token.
func failure(ctx context.Context, op, client string, err error) error {
	e := &backends.Error{Op: op, Client: client}
	var answered *oauth2.RetrieveError
	switch {
	case ctx.Err() != nil:
		e.Err = ctx.Err()
		return e
	case !errors.As(err, &answered):
		// What the library itself finds wrong in an answer is no matter of
		// the network, but nothing that the user could mend either.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL
		}
		e.Err = fmt.Errorf("%w: %w", backends.ErrUnreachable, err)
		return e
	}
	status := 0
	if answered.Response != nil {
		status = answered.Response.StatusCode
	}
	text := fmt.Sprintf("HTTP %d", status)
	if code := backends.Code(answered.ErrorCode); code != "" {
		text += ", " + code
	}
	kind := backends.ErrAuth
	switch {
	case status == http.StatusTooManyRequests:
		kind = backends.ErrBusy
	case status >= 500, answered.ErrorCode == "temporarily_unavailable", answered.ErrorCode == "server_error":
		kind = backends.ErrUnreachable
	case answered.ErrorCode == "invalid_client", answered.ErrorCode == "unauthorized_client":
		e.Hint = "check the application's key and secret, then " + hint(client)
	case answered.ErrorCode != "", status == http.StatusBadRequest, status == http.StatusUnauthorized,
		status == http.StatusForbidden:
		e.Hint = hint(client)
	default:
		// A proxy's page, a redirect to a hotel's login: nobody was asked.
		kind = backends.ErrUnreachable
	}
	e.Err = fmt.Errorf("%w: %s", kind, text)
	return e
}
