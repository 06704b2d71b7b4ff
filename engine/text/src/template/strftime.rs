//! `strftime_now`: the current time in UTC, as C's `strftime` writes it.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

pub(super) fn now(format: &str) -> Result<String, Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment::from_unix(since.as_secs()).format(format)
}

struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 0, Sunday.
    weekday: usize,
    /// From 1.
    day_of_year: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn from_unix(seconds: u64) -> Self {
        let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
        let weekday = usize::try_from((days + 4) % 7).unwrap_or(0);
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 0;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
            weekday,
            day_of_year,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    fn format(&self, format: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            // `%-d`: no padding.
            let mut directive = chars.next();
            let padded = directive != Some('-');
            if !padded {
                directive = chars.next();
            }
            let text = directive.and_then(|d| self.directive(d)).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: bad format {:?}", crate::error::shorten(format)),
                )
            })?;
            out.push_str(if padded { &text } else { without_padding(&text) });
        }
        Ok(out)
    }

    fn directive(&self, directive: char) -> Option<String> {
        let (month, day) = (MONTHS[self.month], DAYS[self.weekday]);
        let twelve = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => (if self.weekday == 0 { 7 } else { self.weekday }).to_string(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{twelve:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => (if self.hour < 12 { "AM" } else { "PM" }).to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' | 'X' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'D' | 'x' => {
                format!("{:02}/{:02}/{:02}", self.month + 1, self.day, self.year % 100)
            }
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn without_padding(text: &str) -> &str {
    let trimmed = text.trim_start_matches(['0', ' ']);
    if trimmed.is_empty() { "0" } else { trimmed }
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

const fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let at = |seconds, format| Moment::from_unix(seconds).format(format).unwrap();
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S %j %p"), "Thursday 01 January 1970 00:00:00 001 AM");
        assert_eq!(at(951_827_696, "%F %T %a %-d %I%p"), "2000-02-29 12:34:56 Tue 29 12PM");
        assert_eq!(at(1_735_689_599, "%d %b %y %j %u"), "31 Dec 24 366 2");
        assert_eq!(at(0, "%-d %-H %%"), "1 0 %");
        assert!(Moment::from_unix(0).format("%Q").is_err());
        assert!(Moment::from_unix(0).format("%").is_err());
    }
}
