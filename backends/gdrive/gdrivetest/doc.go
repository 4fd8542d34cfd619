// Package gdrivetest emulates Google Drive for tests, in the manner of
// net/http/httptest: an HTTP server with the documented behaviour, limits and
// errors of the Drive API v3 and of Google's OAuth 2.0 endpoints, driven by
// the unmodified client library and by programs such as rclone.
//
// It keeps one account in memory; large content lies in temporary files or is
// read from files that the test seeds. Names are not unique, as on Drive, and
// a few traps of the real service are kept on purpose: "name =" ignores case,
// "name contains" matches beginnings of words only, "and" binds no stronger than
// "or", a trashed folder hides all below it, false booleans are sent, sizes are
// strings.
//
// What it does not emulate: shared drives (drives.list is empty), comments,
// Docs conversion, push notifications, and the time that a change takes to
// become visible.
//
// Start at NewServer; Drive has the seeding, the faults and the counters.
// Facts come from https://developers.google.com/workspace/drive/api (guides
// "search-files", "manage-uploads", "manage-revisions", "handle-errors",
// "properties" and the v3 reference).
package gdrivetest
