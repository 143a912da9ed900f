# Where a configuration of nginx, as `nginx -T` prints it, needs the module: file:line and what, for each place.
#
# A directive begins after ";", "{" or "}". Quotes and comments hold none; a variable may stand in quotes.
function found(what) {
    if (!((file, line) in said)) { said[file, line] = 1; printf "    %s:%d: %s\n", file, line, what }
}
function word() {
    if (text == "") return
    if (is_first) {
        directive = text
        if (text ~ /^handoff(_[a-z]+)?$/) found(text)
    } else if (directive == "load_module" && text ~ /ngx_http_handoff_module\.so$/) {
        if (file !~ /modules-(enabled|available)\/[^\/]*mod-http-handoff\.conf$/) found("load_module " text)
    } else if (directive == "include" && text ~ /snippets\/handoff-control\.conf$/) {
        found("include " text)
    }
    is_first = 0
    text = ""
}
/^# configuration file .*:$/ {
    file = substr($0, 22, length($0) - 22); line = 0
    is_first = 1; text = ""; quote = ""; directive = ""
    next
}
{
    line++
    n = length($0)
    for (i = 1; i <= n; i++) {
        c = substr($0, i, 1)
        if (c == "$" && substr($0, i) ~ /^\$\{?handoff_[a-z]/) found("$handoff_…")
        if (c == "\\") { text = text substr($0, i, 2); i++; continue }
        if (quote != "") { if (c == quote) quote = ""; else text = text c; continue }
        if (text == "" && c == "#") break
        if (text == "" && (c == "\"" || c == "\047")) { quote = c; continue }
        if (c == ";" || c == "{" || c == "}") {
            if (c == "{" && text ~ /\$$/) { text = text c; continue }
            word(); is_first = 1; directive = ""
        }
        else if (c == " " || c == "\t" || c == "\r") word()
        else text = text c
    }
    if (quote == "") word()
}
