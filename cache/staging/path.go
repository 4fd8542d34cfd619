package staging

// Path is where the bytes of the staged file with that ID lie. It is for
// telling the user; they belong to this package while the file is staged.
func (d *Dir) Path(id string) string { return d.join(id + dataSuffix) }
