# Loaded before a test of nginx's own suite: what the test writes as nginx.conf gets an upstream block with a zone wherever
# requests are passed to an address, and every block the lines in HANDOFF_UPSTREAM. Without that variable, nothing changes.
package Handoff;

use strict;
use warnings;

use Test::Nginx qw//;

# The directives that pass a request on, up to where the address begins.
my $passes = qr{\b(?:proxy|fastcgi|scgi|uwsgi|grpc|memcached)_pass\s+(?:\w+://)?};
my $tcp = qr{127\.0\.0\.1:(?:%%PORT_\d+%%|\d+)};
my $unix = qr{unix:[^:;\s]+};

sub in_http {
	my ($http, $lines) = @_;
	my %blocks;

	$http =~ s/($passes)($tcp|$unix)(?::(?=\/))?(?=[\/;])/$1 . name(\%blocks, $2)/ge;
	my $blocks = join '', map { "upstream $blocks{$_} {\n server $_;\n}\n" } sort keys %blocks;
	$http =~ s/\A(.*?\n)/$1$blocks/;

	$http =~ s/^(\s*upstream\s+(\S+)\s*\{)([^}]*)/$1 . zone($2, $3) . " $lines$3"/gme;
	return $http;
}

sub name {
	my ($blocks, $address) = @_;
	return $blocks->{$address} ||= 'named_' . keys %$blocks;
}

sub zone {
	my ($name, $body) = @_;
	return $body =~ /^\s*zone\s/m ? '' : " zone zone_of_$name 128k;";
}

# Under valgrind, and where the machine has more to do, nginx needs longer to start than the suite waits.
{
	my $wait = \&Test::Nginx::waitforfile;
	no warnings qw/redefine prototype/;
	*Test::Nginx::waitforfile = sub {
		for (1 .. 12) {
			my $came = $wait->(@_);
			return $came if defined $came;
		}
		return undef;
	};
}

# nginx may be built with more modules than are installed: only those are loaded.
{
	my $modules = \&Test::Nginx::test_globals_modules;
	no warnings qw/redefine prototype/;
	*Test::Nginx::test_globals_modules = sub {
		return join '', grep { /^load_module (\S+);$/ && -e $1 } split /^/, $modules->(@_);
	};
}

if (defined(my $lines = $ENV{HANDOFF_UPSTREAM})) {
	my $expand = \&Test::Nginx::write_file_expand;
	no warnings qw/redefine prototype/;
	*Test::Nginx::write_file_expand = sub {
		my ($self, $name, $content) = @_;
		# In these files a block ends where a line begins with its brace.
		$content =~ s/^(http\s*\{.*?^\})/in_http($1, $lines)/gmse if $name =~ /\.conf$/;
		return $expand->($self, $name, $content);
	};
}

1;
