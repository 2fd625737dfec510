"""What people see of a run: console, tables, pictures, the report and the experiment tracker."""
