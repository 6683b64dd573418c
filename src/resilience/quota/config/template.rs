//! Templates of paths: which requests one quota covers, where that is deeper or wider than the beginning of their path.
//!
//! ```yaml
//! bucket: { paths: ["/v1/users/*/{part}/**", "/*/models/{model}:*"] }
//! ```
//!
//! `*` is any segment and no part of the name (an id); what stands for `{word}` is a part of it; `/**` at the end is whatever follows,
//! also nothing. `{word}:*` is a segment of which only what stands before its last colon counts (Google's `models/m:generateContent`).
//! The name of a bucket is the method and the template with what stood for its words. Paths are compared as they were sent, without
//! query and without a slash at the end: one that is escaped otherwise falls in another bucket, which costs a refusal at most.

use std::fmt;

/// One template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    segments: Box<[Segment]>,
    /// Whether `/**` follows.
    and_below: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Is(Box<str>),
    /// `*`
    Any,
    /// `{word}`
    Named,
    /// `{word}:*`
    NamedCall,
}

/// Why a text is no template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateFault {
    /// No slash at the front.
    #[error("a template begins with `/`")]
    NoSlash,
    /// A query or a fragment.
    #[error("a path is compared without query")]
    Query,
    /// Nothing between two slashes.
    #[error("an empty segment")]
    Empty,
    /// `v*`, `**` in the middle, `x{y}` or a brace that nothing closes.
    #[error("a segment is a text, `*`, `{{word}}` or `{{word}}:*`, and `/**` may follow")]
    Segment,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Where the text is none; see [`TemplateFault`].
    pub fn parse(text: &str) -> Result<Self, TemplateFault> {
        let rest = text.strip_prefix('/').ok_or(TemplateFault::NoSlash)?;
        if rest.contains(['?', '#']) {
            return Err(TemplateFault::Query);
        }
        let (rest, and_below) = match rest.strip_suffix("/**") {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        let segments = rest.split('/').map(Segment::parse).collect::<Result<_, _>>()?;
        Ok(Self { segments, and_below })
    }

    /// The name of a path's bucket, if the path is one of the template's.
    pub fn name(&self, path: &str) -> Option<String> {
        let path = path.strip_prefix('/')?;
        let mut given = path.strip_suffix('/').unwrap_or(path).split('/');
        let mut name = String::with_capacity(path.len() + 8);
        for segment in &self.segments {
            name.push('/');
            name.push_str(segment.counted(given.next()?)?);
        }
        (self.and_below || given.next().is_none()).then_some(name)
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, TemplateFault> {
        let word = |text: &str| {
            let word = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            word.is_some_and(|word| {
                !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            })
        };
        match text {
            "" => Err(TemplateFault::Empty),
            "*" => Ok(Self::Any),
            _ if word(text) => Ok(Self::Named),
            _ if text.strip_suffix(":*").is_some_and(word) => Ok(Self::NamedCall),
            _ if text.contains(['*', '{', '}']) => Err(TemplateFault::Segment),
            _ => Ok(Self::Is(text.into())),
        }
    }

    /// What of a segment is a part of the name, if it is one of these.
    fn counted<'a>(&self, given: &'a str) -> Option<&'a str> {
        match self {
            Self::Is(text) => (**text == *given).then_some(given),
            Self::Any => Some("*"),
            Self::Named => Some(given),
            Self::NamedCall => given.rsplit_once(':').map(|(before, _)| before),
        }
    }
}

/// As it is written, with `{}` for each word.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Is(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/*")?,
                Segment::Named => f.write_str("/{}")?,
                Segment::NamedCall => f.write_str("/{}:*")?,
            }
        }
        if self.and_below { f.write_str("/**") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_template_with_its_words() {
        for (template, path, name) in [
            ("/a/*/{part}", "/a/1/x", Some("/a/*/x")),
            ("/a/*/{part}", "/a/2/x/", Some("/a/*/x")),
            ("/a/*/{part}", "/a/1", None),
            ("/a/*/{part}", "/a/1/x/2", None),
            ("/a/*/{part}/**", "/a/1/x/2/y", Some("/a/*/x")),
            ("/a/*/{part}/**", "/a/1/x", Some("/a/*/x")),
            ("/a/*/{part}/**", "/a/1", None),
            ("/a", "/b", None),
            ("/a", "/A", None),
            ("/*/models/{model}:*", "/v1/models/gemini-2.0:embed", Some("/*/models/gemini-2.0")),
            ("/*/models/{model}:*", "/v1beta/models/gemini-2.0:count", Some("/*/models/gemini-2.0")),
            ("/*/models/{model}:*", "/v1/models/gemini-2.0", None),
            ("/{a}", "/", Some("/")),
        ] {
            assert_eq!(Template::parse(template).unwrap().name(path).as_deref(), name, "{template} {path}");
        }
    }

    #[test]
    fn what_is_no_template_is_told() {
        for (text, fault) in [
            ("", TemplateFault::NoSlash),
            ("a/b", TemplateFault::NoSlash),
            ("/a?b", TemplateFault::Query),
            ("/", TemplateFault::Empty),
            ("/**", TemplateFault::Segment),
            ("/a//b", TemplateFault::Empty),
            ("/a/", TemplateFault::Empty),
            ("/v*/b", TemplateFault::Segment),
            ("/a/**/b", TemplateFault::Segment),
            ("/x{a}", TemplateFault::Segment),
            ("/{}", TemplateFault::Segment),
            ("/{a", TemplateFault::Segment),
            ("/{a:*}", TemplateFault::Segment),
        ] {
            assert_eq!(Template::parse(text), Err(fault), "{text}");
        }
        assert_eq!(Template::parse("/a/*/{b}/{c}:*/**").unwrap().to_string(), "/a/*/{}/{}:*/**");
    }
}
