//! What `nginx -T` writes, read as nginx itself reads it: each file behind its mark, `include` still to be followed.
//!
//! Every directive keeps where it stands and how it is written, so that a mend can name the very words to change. Quotes,
//! escapes and `${…}` are read as by `ngx_conf_read_token`; a block of Lua (`…_by_lua_block {`) is passed over as Lua.

use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Where a directive stands, and how it is written: up to its `;`, or to the `{` of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    pub file: Arc<Path>,
    pub line: usize,
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    pub name: String,
    pub args: Vec<String>,
    pub spot: Spot,
    /// Empty for one without a block.
    pub block: Vec<Directive>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {text}", file.display())]
pub struct ConfError {
    file: Arc<Path>,
    line: usize,
    text: &'static str,
}

/// The files of a dump, by name. The first one is the main one.
struct Files<'a> {
    main: &'a str,
    by_name: BTreeMap<&'a str, &'a str>,
}

struct Reader<'a> {
    file: Arc<Path>,
    text: &'a str,
    at: usize,
    line: usize,
}

/// What ended the words of a directive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Semicolon,
    Open,
    Close,
    File,
}

struct Words {
    words: Vec<String>,
    end: End,
    line: usize,
    /// Where the first of them begins.
    from: usize,
}

const MARK: &str = "# configuration file ";
/// nginx itself has no bound; a file that includes itself would be one without end.
const DEPTH: usize = 32;

/// The directives of the main context, with those of all included files in their place.
pub fn parse(dump: &str) -> Result<Vec<Directive>, ConfError> {
    let files = Files::split(dump);
    let main = files.main;
    let text = files.by_name.get(main).copied().unwrap_or_default();
    Reader::new(main, text).block(&files, false, 0)
}

/// The file that nginx was told to read.
pub fn main_file(dump: &str) -> Arc<Path> {
    Path::new(Files::split(dump).main).into()
}

// === impl Files ===

impl<'a> Files<'a> {
    fn split(dump: &'a str) -> Self {
        let mut files = Self { main: "", by_name: BTreeMap::new() };
        let (mut name, mut begins, mut at) = (None, 0, 0);
        for line in dump.split_inclusive('\n') {
            if let Some(next) = marked(line) {
                files.add(name, dump.get(begins..at));
                (name, begins) = (Some(next), at + line.len());
            }
            at += line.len();
        }
        files.add(name, dump.get(begins..));
        files
    }

    fn add(&mut self, name: Option<&'a str>, text: Option<&'a str>) {
        let Some((name, text)) = name.zip(text) else { return };
        if self.by_name.is_empty() {
            self.main = name;
        }
        self.by_name.entry(name).or_insert(text);
    }

    /// What an `include` leads to, in nginx's order. Relative names are beside the main file.
    fn included(&self, pattern: &str) -> Vec<(&'a str, &'a str)> {
        let beside = Path::new(self.main).parent().unwrap_or(Path::new("/"));
        let pattern = beside.join(pattern).display().to_string();
        let matching = self.by_name.iter().filter(|(name, _)| matches(pattern.as_bytes(), name.as_bytes()));
        matching.map(|(&name, &text)| (name, text)).collect()
    }
}

fn marked(line: &str) -> Option<&str> {
    line.strip_prefix(MARK)?.trim_end().strip_suffix(':').filter(|name| name.starts_with('/'))
}

/// As glob(3): `*` and `?` never match a slash, nor a dot at the beginning of a name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    fn at(pattern: &[u8], name: &[u8], is_first: bool) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                let hidden = is_first && name.first() == Some(&b'.');
                at(rest, name, is_first && !hidden)
                    || (!hidden
                        && matches!(name, [first, tail @ ..] if *first != b'/' && at(pattern, tail, false)))
            }
            ([b'?', rest @ ..], [c, tail @ ..]) => {
                *c != b'/' && !(is_first && *c == b'.') && at(rest, tail, false)
            }
            ([b'[', rest @ ..], [c, tail @ ..]) => match rest.iter().skip(1).position(|&end| end == b']') {
                Some(end) => {
                    let (set, after) = rest.split_at_checked(end + 1).unwrap_or((rest, &[]));
                    is_in(set, *c) && at(after.get(1..).unwrap_or_default(), tail, false)
                }
                None => *c == b'[' && at(rest, tail, false),
            },
            ([b'\\', c, rest @ ..] | [c, rest @ ..], [d, tail @ ..]) => c == d && at(rest, tail, *d == b'/'),
            _ => false,
        }
    }
    at(pattern, name, true)
}

/// `abc`, `a-z`, `!abc`.
fn is_in(set: &[u8], c: u8) -> bool {
    let (is_not, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        set => (false, set),
    };
    let mut set = set;
    let mut found = false;
    while let [first, rest @ ..] = set {
        set = match rest {
            [b'-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&c);
                rest
            }
            rest => {
                found |= *first == c;
                rest
            }
        };
    }
    c != b'/' && found != is_not
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn new(file: &str, text: &'a str) -> Self {
        Self { file: Path::new(file).into(), text, at: 0, line: 1 }
    }

    fn block(
        &mut self,
        files: &Files<'a>,
        is_inner: bool,
        depth: usize,
    ) -> Result<Vec<Directive>, ConfError> {
        if depth > DEPTH {
            return Err(self.wrong("files or blocks lie too deep in each other"));
        }
        let mut directives = Vec::new();
        loop {
            let Words { words, end, line, from } = self.words()?;
            match end {
                End::Close if is_inner => return Ok(directives),
                End::File if !is_inner => return Ok(directives),
                End::Close => return Err(self.wrong("unexpected \"}\"")),
                End::File => return Err(self.wrong("unexpected end of file, expecting \"}\"")),
                End::Semicolon | End::Open => {}
            }
            let mut words = words.into_iter();
            let name = words.next().unwrap_or_default();
            let args: Vec<String> = words.collect();
            let source = self.text.get(from..self.at).unwrap_or_default().to_owned();
            let block = if end == End::Open && name.ends_with("_by_lua_block") {
                self.lua()?;
                Vec::new()
            } else if end == End::Open {
                self.block(files, true, depth + 1)?
            } else {
                Vec::new()
            };
            match args.first().filter(|_| name == "include" && end == End::Semicolon) {
                None => {
                    let spot = Spot { file: self.file.clone(), line, source };
                    directives.push(Directive { name, args, spot, block });
                }
                Some(pattern) => {
                    for (name, text) in files.included(pattern) {
                        directives.extend(Reader::new(name, text).block(files, false, depth + 1)?);
                    }
                }
            }
        }
    }

    /// The words up to the next `;`, `{` or `}`, as nginx takes them apart.
    fn words(&mut self) -> Result<Words, ConfError> {
        let mut found = Words { words: Vec::new(), end: End::File, line: self.line, from: self.at };
        let mut word: Option<Word> = None;
        // Behind a quoted word there must be room.
        let mut needs_space = false;
        let mut is_comment = false;
        while let Some(c) = self.next() {
            if is_comment {
                is_comment = c != '\n';
                continue;
            }
            if let Some(open) = &mut word {
                match open.take(c) {
                    Taken::Inside => {}
                    Taken::Quoted => {
                        found.words.extend(word.take().map(|word| word.text));
                        needs_space = true;
                    }
                    Taken::Ended => {
                        found.words.extend(word.take().map(|word| word.text));
                        if let Some(end) = ends(c) {
                            return Ok(Words { end, ..found });
                        }
                    }
                }
                continue;
            }
            if needs_space && !matches!(c, ' ' | '\t' | '\r' | '\n' | ';' | '{' | ')') {
                return Err(self.wrong("unexpected character behind a quoted word"));
            }
            needs_space = false;
            match c {
                ' ' | '\t' | '\r' | '\n' => {}
                ';' | '{' if found.words.is_empty() => return Err(self.wrong("unexpected \";\" or \"{\"")),
                ';' => return Ok(Words { end: End::Semicolon, ..found }),
                '{' => return Ok(Words { end: End::Open, ..found }),
                '}' if found.words.is_empty() => return Ok(Words { end: End::Close, ..found }),
                '}' => return Err(self.wrong("unexpected \"}\"")),
                '#' => is_comment = true,
                c => {
                    if found.words.is_empty() {
                        (found.line, found.from) = (self.line, self.at - c.len_utf8());
                    }
                    word = Some(Word::begin(c));
                }
            }
        }
        if word.is_some() || !found.words.is_empty() {
            return Err(self.wrong("unexpected end of file, expecting \";\" or \"}\""));
        }
        Ok(found)
    }

    /// To the end of a block of Lua, whose strings and comments may hold braces.
    fn lua(&mut self) -> Result<(), ConfError> {
        let mut depth = 1;
        while let Some(c) = self.next() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                '"' | '\'' => self.lua_string(c),
                '[' => _ = self.lua_long(),
                '-' if self.rest().starts_with('-') => {
                    self.next();
                    let is_long = self.rest().starts_with('[') && {
                        self.next();
                        self.lua_long()
                    };
                    while !is_long && self.next().is_some_and(|c| c != '\n') {}
                    continue;
                }
                _ => continue,
            };
            if depth == 0 {
                return Ok(());
            }
        }
        Err(self.wrong("unexpected end of file in a block of Lua"))
    }

    fn lua_string(&mut self, quote: char) {
        while let Some(c) = self.next() {
            match c {
                '\\' => _ = self.next(),
                '\n' => return,
                c if c == quote => return,
                _ => {}
            }
        }
    }

    /// Behind the first bracket of `[[…]]` or `[==[…]==]`, if it is one.
    fn lua_long(&mut self) -> bool {
        let level = self.rest().bytes().take_while(|&byte| byte == b'=').count();
        if self.rest().as_bytes().get(level) != Some(&b'[') {
            return false;
        }
        let close = format!("]{}]", "=".repeat(level));
        let end = self.rest().find(&close).map_or(self.text.len(), |end| self.at + end + close.len());
        while self.at < end && self.next().is_some() {}
        true
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn wrong(&self, text: &'static str) -> ConfError {
        ConfError { file: self.file.clone(), line: self.line, text }
    }
}

fn ends(c: char) -> Option<End> {
    match c {
        ';' => Some(End::Semicolon),
        '{' => Some(End::Open),
        _ => None,
    }
}

/// A word that is being read.
struct Word {
    text: String,
    quote: Option<char>,
    is_escaped: bool,
    /// Behind a `$`: the brace of `${name}` belongs to the word.
    is_variable: bool,
}

enum Taken {
    Inside,
    /// That was the closing quote.
    Quoted,
    /// That was the first character behind it.
    Ended,
}

// === impl Word ===

impl Word {
    fn begin(c: char) -> Self {
        let quote = Some(c).filter(|c| matches!(c, '"' | '\''));
        let mut word = Self { text: String::new(), quote, is_escaped: c == '\\', is_variable: c == '$' };
        if quote.is_none() && c != '\\' {
            word.text.push(c);
        }
        word
    }

    fn take(&mut self, c: char) -> Taken {
        if std::mem::take(&mut self.is_escaped) {
            match c {
                '"' | '\'' | '\\' => self.text.push(c),
                't' => self.text.push('\t'),
                'r' => self.text.push('\r'),
                'n' => self.text.push('\n'),
                c => self.text.extend(['\\', c]),
            }
            return Taken::Inside;
        }
        if std::mem::take(&mut self.is_variable) && c == '{' {
            self.text.push(c);
            return Taken::Inside;
        }
        match (c, self.quote) {
            ('\\', _) => self.is_escaped = true,
            (c, Some(quote)) if c == quote => return Taken::Quoted,
            (' ' | '\t' | '\r' | '\n' | ';' | '{', None) => return Taken::Ended,
            (c, _) => {
                self.is_variable = c == '$';
                self.text.push(c);
            }
        }
        Taken::Inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Directive>, String> {
        parse(&format!("# configuration file /etc/nginx/nginx.conf:\n{text}\n"))
            .map_err(|error| error.to_string())
    }

    fn words(directive: &Directive) -> Vec<&str> {
        [directive.name.as_str()].into_iter().chain(directive.args.iter().map(String::as_str)).collect()
    }

    #[test]
    fn quotes_escapes_and_variables_are_read_as_by_nginx() {
        for (text, wanted) in [
            ("a b  c;", &["a", "b", "c"][..]),
            ("a \"b;c {\" 'd\"';", &["a", "b;c {", "d\""]),
            (r#"a "\"\n\x";"#, &["a", "\"\n\\x"]),
            ("set $x ${y}z;", &["set", "$x", "${y}z"]),
            ("a x${y}z\t;", &["a", "x${y}z"]),
            ("a \"${y}\"; # b;", &["a", "${y}"]),
            ("a # b;\n c;", &["a", "c"]),
            ("a b#c;", &["a", "b#c"]),
            ("a \"\";", &["a", ""]),
            ("location ~ \"^/\\d{2}$\" { }", &["location", "~", "^/\\d{2}$"]),
        ] {
            let read = of(text).unwrap();
            assert_eq!(words(&read[0]), wanted, "{text}");
        }
    }

    #[test]
    fn a_directive_knows_where_it_stands_and_how_it_is_written() {
        let read =
            of("# one\n\nhttp {\n    proxy_next_upstream  error\n        timeout; server { }\n}").unwrap();
        let (http, inner) = (&read[0], &read[0].block);
        assert_eq!((http.spot.line, http.spot.source.as_str()), (3, "http {"));
        assert_eq!(
            (inner[0].spot.line, inner[0].spot.source.as_str()),
            (4, "proxy_next_upstream  error\n        timeout;")
        );
        assert_eq!((inner[1].spot.line, inner[1].spot.source.as_str()), (5, "server {"));
        assert_eq!(http.spot.file.as_ref(), Path::new("/etc/nginx/nginx.conf"));
    }

    #[test]
    fn includes_stand_where_they_are_included_in_nginxs_order() {
        let dump = "# configuration file /etc/nginx/nginx.conf:\nhttp { include sites/*; include mime.types; x; }\n\n\
                    # configuration file /etc/nginx/sites/b.conf:\nb;\n\n\
                    # configuration file /etc/nginx/sites/a.conf:\n\na;\n\n\
                    # configuration file /etc/nginx/mime.types:\ntypes { text/html html; }\n\n";
        let read = parse(dump).unwrap();
        let inner: Vec<_> =
            read[0].block.iter().map(|inner| (inner.name.as_str(), inner.spot.line)).collect();
        assert_eq!(inner, [("a", 2), ("b", 1), ("types", 1), ("x", 1)]);
        assert_eq!(read[0].block[0].spot.file.as_ref(), Path::new("/etc/nginx/sites/a.conf"));
        assert_eq!(main_file(dump).as_ref(), Path::new("/etc/nginx/nginx.conf"));
    }

    #[test]
    fn patterns_match_as_in_the_shell() {
        let fits = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        assert!(fits("/a/*.conf", "/a/b.conf") && fits("/a/b?", "/a/bc") && fits("/a/[a-c]x", "/a/bx"));
        assert!(!fits("/a/*", "/a/b/c") && !fits("/a/*", "/a/.b") && !fits("/a/[!a-c]x", "/a/bx"));
        assert!(fits("/a/.*", "/a/.b") && fits("/a/*/c", "/a/b/c"));
    }

    #[test]
    fn a_block_of_lua_is_passed_over() {
        let read = of(
            "location / {\n  content_by_lua_block {\n    local t = { a = \"}\" } -- }\n    --[[ } ]] ngx.say('}', [==[ } ]==])\n  }\n  x 1;\n}",
        )
        .unwrap();
        let inner: Vec<_> =
            read[0].block.iter().map(|inner| (inner.name.as_str(), inner.spot.line)).collect();
        assert_eq!(inner, [("content_by_lua_block", 2), ("x", 6)]);
    }

    #[test]
    fn what_nginx_would_not_read_is_said_with_its_place() {
        for (text, says) in [
            ("a {", "nginx.conf:2: unexpected end of file"),
            ("\na", ":3: unexpected end of file"),
            ("}", ":1: unexpected \"}\""),
            ("a \"b\"c;", ":1: unexpected character"),
            (";", ":1: unexpected \";\""),
            ("a_by_lua_block { '}'", "in a block of Lua"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert_eq!(parse("").unwrap(), []);
    }
}
