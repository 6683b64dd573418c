//! The tables by which a request finds its provider, and the mistakes that only show when all providers are seen at once.

use std::collections::HashMap;
use std::sync::Arc;

use super::Compiler;
use crate::policy::compiled::Provider;
use crate::policy::pattern::{HostMap, HostPattern};

/// Providers by host and by local path.
#[derive(Default)]
pub(super) struct Tables {
    pub hosts: HostMap<usize>,
    pub local_hosts: HostMap<usize>,
    pub local_paths: HashMap<String, Vec<(String, usize)>>,
}

impl Compiler<'_> {
    pub(super) fn tables(&mut self, providers: &[Arc<Provider>]) -> Tables {
        let mut tables = Tables::default();
        for (index, provider) in providers.iter().enumerate() {
            self.add_hosts(&mut tables, providers, index, provider);
            self.add_local(&mut tables, providers, index, provider);
        }
        // At the local endpoint a host alone may mean two accounts at one provider. It means the one that has the host at the
        // other doors too; the others have their prefix.
        for beyond in [true, false] {
            for (index, provider) in providers.iter().enumerate() {
                if provider.doors.local && provider.doors.beyond_local() == beyond {
                    add_local_hosts(&mut tables, index, provider);
                }
            }
        }
        for list in tables.local_paths.values_mut() {
            // The longest prefix is looked at first.
            list.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        tables
    }

    fn add_hosts(
        &mut self,
        tables: &mut Tables,
        providers: &[Arc<Provider>],
        index: usize,
        provider: &Provider,
    ) {
        for (place, name) in provider.host_names.iter().enumerate() {
            let Ok(pattern) = HostPattern::parse(name) else { continue };
            let port = pattern.port().unwrap_or(provider.upstream.settings.scheme.default_port());
            if provider.doors.beyond_local()
                && let Err(other) = tables.hosts.insert(&pattern, port, index)
                && other != index
            {
                let other = &providers[other].name;
                self.mistake_with(
                    &provider.path.key("hosts").index(place),
                    format!("`{name}` stands in provider `{other}` too"),
                    "two accounts at one provider: all but one say `doors: [local]`",
                );
            }
        }
    }

    fn add_local(
        &mut self,
        tables: &mut Tables,
        providers: &[Arc<Provider>],
        index: usize,
        provider: &Provider,
    ) {
        if !provider.doors.local {
            return;
        }
        if let Ok(pattern) = HostPattern::parse(&provider.local_host.to_string()) {
            // Port 0 stands for the listener's own port, whatever it is.
            if let Err(other) = tables.local_hosts.insert(&pattern, 0, index) {
                let path = provider.path.key("local").key("host");
                self.mistake(
                    &path,
                    format!(
                        "`{}` is the local host of provider `{}` too",
                        provider.local_host, providers[other].name
                    ),
                );
            }
        }
        let first =
            provider.local_path.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
        let list = tables.local_paths.entry(first).or_default();
        if let Some((_, other)) = list.iter().find(|(prefix, _)| *prefix == provider.local_path) {
            let path = provider.path.key("local").key("path");
            self.mistake(
                &path,
                format!(
                    "`{}` is the local path of provider `{}` too",
                    provider.local_path, providers[*other].name
                ),
            );
        }
        list.push((provider.local_path.clone(), index));
    }
}

fn add_local_hosts(tables: &mut Tables, index: usize, provider: &Provider) {
    for name in &provider.host_names {
        let Ok(pattern) = HostPattern::parse(name) else { continue };
        let port = pattern.port().unwrap_or(provider.upstream.settings.scheme.default_port());
        let _ = tables.local_hosts.insert(&pattern, port, index);
    }
}
