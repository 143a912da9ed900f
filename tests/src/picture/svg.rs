//! The few shapes that the picture needs.

use std::fmt::Write as _;

/// A fill for where nothing is.
pub(super) const HATCHED: &str = "url(#hatched)";

const DEFINITIONS: &str = r##"<defs><pattern id="hatched" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#ffffff"/><rect width="2" height="6" fill="#b9c1cd"/></pattern></defs>
"##;

#[derive(Debug)]
pub(super) struct Svg {
    text: String,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

type Point = (f64, f64);

// Writing to a String cannot fail.
impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut text = String::new();
        _ = writeln!(
            text,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Inter, 'Segoe UI', 'DejaVu Sans', sans-serif">"#
        );
        text.push_str(DEFINITIONS);
        let mut svg = Self { text };
        svg.rect((0.0, 0.0), (width, height), "#ffffff", "");
        svg
    }

    /// With a title, if there is one, that a browser shows on hovering.
    pub(super) fn rect(&mut self, (x, y): Point, (width, height): Point, fill: &str, title: &str) {
        _ = write!(
            self.text,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}""#
        );
        _ = if title.is_empty() {
            writeln!(self.text, "/>")
        } else {
            writeln!(self.text, "><title>{}</title></rect>", escaped(title))
        };
    }

    pub(super) fn text(
        &mut self,
        (x, y): Point,
        text: &str,
        size: u32,
        weight: &str,
        fill: &str,
        anchor: Anchor,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        _ = writeln!(
            self.text,
            r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}">{}</text>"#,
            escaped(text)
        );
    }

    pub(super) fn line(&mut self, (x1, y1): Point, (x2, y2): Point, stroke: &str) {
        _ = writeln!(
            self.text,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}"/>"#
        );
    }

    pub(super) fn path(&mut self, points: &[Point], stroke: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        _ = writeln!(
            self.text,
            r#"<polyline points="{}" fill="none" stroke="{stroke}" stroke-width="1.4" stroke-linejoin="round"/>"#,
            points.join(" ")
        );
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
