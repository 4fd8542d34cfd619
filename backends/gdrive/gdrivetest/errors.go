package gdrivetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// apiError is an error as the Drive API tells it (guide "handle-errors").
type apiError struct {
	code                    int
	reason, domain, message string
	locationType, location  string
	retryAfter              time.Duration
	oauth                   bool // told as RFC 6749, section 5.2, has it
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.code, e.reason, e.message) }

func badRequest(reason, location, message string) *apiError {
	return &apiError{code: 400, reason: reason, message: message, locationType: "parameter", location: location}
}

func invalidParameter(location string) *apiError {
	return badRequest("invalid", location, "Invalid Value")
}

func notFound(what, id string) *apiError {
	return &apiError{code: 404, reason: "notFound", message: what + " not found: " + id + ".", locationType: "parameter", location: "fileId"}
}

func forbidden(reason, message string) *apiError {
	return &apiError{code: 403, reason: reason, message: message}
}

var (
	errAuth = &apiError{code: 401, reason: "authError", message: "Invalid Credentials", locationType: "header", location: "Authorization"}
	// errNoAuth is what a request without any credentials gets.
	errNoAuth = &apiError{code: 401, reason: "required", message: "Login Required.", locationType: "header", location: "Authorization"}
	errQuota  = &apiError{code: 403, reason: "storageQuotaExceeded", message: "The user's Drive storage quota has been exceeded."}
)

// domains are those of the reasons that are not "global".
var domains = map[string]string{
	"rateLimitExceeded":     "usageLimits",
	"userRateLimitExceeded": "usageLimits",
	"dailyLimitExceeded":    "usageLimits",
	"accessNotConfigured":   "usageLimits",
}

func writeError(w http.ResponseWriter, e *apiError) {
	if e.oauth {
		writeJSON(w, e.code, map[string]any{"error": e.reason, "error_description": e.message})
		return
	}
	domain := e.domain
	if domain == "" {
		if domain = domains[e.reason]; domain == "" {
			domain = "global"
		}
	}
	item := map[string]any{"domain": domain, "reason": e.reason, "message": e.message}
	if e.location != "" {
		item["locationType"], item["location"] = e.locationType, e.location
	}
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
	}
	if e.code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="invalid_token"`)
	}
	writeJSON(w, e.code, map[string]any{"error": map[string]any{
		"code": e.code, "message": e.message, "errors": []any{item},
	}})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(http.ErrAbortHandler) // only values that this package builds get here
	}
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	w.Write(body)
}
