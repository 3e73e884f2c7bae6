-- SPDX-License-Identifier: Apache-2.0
--
-- The least "InnoDB Cluster metadata" that MySQL Router 9.7 wants to find in a cluster. MySQL Shell would make it, but Debian
-- has none. Run on the primary.
CREATE DATABASE IF NOT EXISTS mysql_innodb_cluster_metadata DEFAULT CHARACTER SET utf8mb4; USE mysql_innodb_cluster_metadata;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW schema_version(major,minor,patch) AS SELECT 2,3,0;
CREATE TABLE IF NOT EXISTS clusters(cluster_id CHAR(36) CHARACTER SET ascii PRIMARY KEY, cluster_name VARCHAR(63) UNIQUE, group_name VARCHAR(63), router_options JSON, clusterset_id CHAR(36) CHARACTER SET ascii);
CREATE TABLE IF NOT EXISTS instances(instance_id INT PRIMARY KEY, cluster_id CHAR(36) CHARACTER SET ascii, address VARCHAR(265), mysql_server_uuid CHAR(36) CHARACTER SET ascii UNIQUE, instance_name VARCHAR(265), addresses JSON, attributes JSON);
CREATE TABLE IF NOT EXISTS routers(router_id INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, router_name VARCHAR(265), product_name VARCHAR(128), address VARCHAR(256), version VARCHAR(12), last_check_in TIMESTAMP NULL, attributes JSON, cluster_id CHAR(36) CHARACTER SET ascii, options JSON, clusterset_id CHAR(36) CHARACTER SET ascii, UNIQUE(address,router_name));
CREATE TABLE IF NOT EXISTS router_stats(router_id INT UNSIGNED PRIMARY KEY, last_check_in TIMESTAMP NULL);
CREATE TABLE IF NOT EXISTS v2_router_rest_accounts(cluster_id CHAR(36) CHARACTER SET ascii, user VARCHAR(256), authentication_method VARCHAR(64), authentication_string TEXT, description VARCHAR(255), privileges JSON, attributes JSON, PRIMARY KEY(cluster_id,user));
CREATE TABLE IF NOT EXISTS v2_cs_members(clusterset_id CHAR(36) CHARACTER SET ascii, cluster_id CHAR(36) CHARACTER SET ascii PRIMARY KEY, member_role VARCHAR(16), invalidated INT);
CREATE TABLE IF NOT EXISTS v2_cs_clustersets(clusterset_id CHAR(36) CHARACTER SET ascii PRIMARY KEY, domain_name VARCHAR(64), view_id INT, cluster_id CHAR(36) CHARACTER SET ascii);
CREATE TABLE IF NOT EXISTS clustersets(clusterset_id CHAR(36) CHARACTER SET ascii PRIMARY KEY, domain_name VARCHAR(64), router_options JSON);
CREATE TABLE IF NOT EXISTS routing_guidelines(guideline_id CHAR(36) CHARACTER SET ascii PRIMARY KEY, guideline JSON);
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_gr_clusters AS SELECT 'gr' cluster_type,'pm' primary_mode,cluster_id,cluster_name,group_name,router_options FROM clusters;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_ar_clusters AS SELECT cluster_id,cluster_name,group_name,router_options,0 view_id FROM clusters WHERE 0;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_clusters AS SELECT * FROM v2_gr_clusters;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_instances AS SELECT instance_id,cluster_id,instance_name label,mysql_server_uuid,address,address endpoint,NULL xendpoint,attributes FROM instances;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_this_instance AS SELECT i.cluster_id,i.instance_id,c.cluster_name,'gr' cluster_type FROM v2_instances i JOIN clusters c USING(cluster_id) WHERE i.mysql_server_uuid=(SELECT CONVERT(variable_value USING ascii) FROM performance_schema.global_variables WHERE variable_name='server_uuid');
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_routers AS SELECT * FROM routers;
CREATE OR REPLACE SQL SECURITY INVOKER VIEW v2_router_options AS SELECT r.router_id,r.router_name,c.cluster_id,c.clusterset_id,c.router_options FROM clusters c JOIN routers r;
INSERT IGNORE INTO routers(router_id,router_name,address) VALUES(1,'ci','127.0.0.1');
REPLACE INTO clusters VALUES('00000000-0000-4000-8000-00000000c1c1','ci',@@group_replication_group_name,'{}',NULL);
REPLACE INTO instances SELECT member_port,'00000000-0000-4000-8000-00000000c1c1',CONCAT('127.0.0.1:',member_port),member_id,CONCAT('127.0.0.1:',member_port),JSON_OBJECT('mysqlClassic',CONCAT('127.0.0.1:',member_port)),'{"instance_type":"group-member"}' FROM performance_schema.replication_group_members;
CREATE USER IF NOT EXISTS router@'%' IDENTIFIED BY 'router-secret';
GRANT SELECT, EXECUTE ON mysql_innodb_cluster_metadata.* TO router@'%'; GRANT INSERT,UPDATE,DELETE ON mysql_innodb_cluster_metadata.* TO router@'%';
GRANT SELECT ON performance_schema.replication_group_members TO router@'%'; GRANT SELECT ON performance_schema.replication_group_member_stats TO router@'%'; GRANT SELECT ON performance_schema.global_variables TO router@'%'; GRANT SELECT ON performance_schema.global_status TO router@'%';
